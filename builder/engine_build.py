"""Run trtllm-build, keep its log, explain its failures, and check what it wrote."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import build_flags
from builder.data import load
from builder.engine_env import BuildEnvironment
from builder.manifest import Sizes
from builder.package import CHECKPOINT, ENGINE
from builder.prepare import Prepared
from builder.request import Progress
from builder.workspace import Workspace
from common.errors import EnvironmentProblem, PackageError, ResourceError

LOG = "build.log"
GPU_FILE = "gpu.csv"
TAIL_LINES = 3


@dataclass(frozen=True)
class Built:
    """An engine folder that was read back and agrees with the plan."""

    tensorrt_llm: str
    tensorrt: str | None
    gpu: str | None
    compute_capability: str | None


def run_build(
    prepared: Prepared,
    space: Workspace,
    environment: BuildEnvironment,
    options: build_flags.BuildOptions,
    report: Progress,
) -> Built:
    """Build into a scratch folder and check it; `Workspace.place` puts it where it belongs.

    Raises:
        EnvironmentProblem: another TensorRT-LLM than planned, or the build failed; the checkpoint stays.
    """
    _check_version(prepared, environment)
    scratch = space.fresh_scratch(ENGINE)
    arguments = _arguments(prepared, space, scratch, environment, options)
    _run(arguments, space.work / LOG, scratch, report)
    shutil.copyfile(space.work / LOG, scratch / LOG)
    gpu = environment.gpus[0]
    (scratch / GPU_FILE).write_text(f"{gpu.name}, {gpu.compute_capability}\n", encoding="utf-8")
    built = read_built(scratch, prepared.config, prepared.sizes)
    if built is None:
        raise _failed(space.work / LOG, "It ended without an error but wrote no config.json.")
    return Built(built.tensorrt_llm, environment.tensorrt, built.gpu, built.compute_capability)


def _check_version(prepared: Prepared, environment: BuildEnvironment) -> None:
    wanted = prepared.target.tensorrt_llm
    if environment.tensorrt_llm != wanted:
        raise EnvironmentProblem(
            f"trtllm-build here is of TensorRT-LLM {environment.tensorrt_llm}, but {wanted} is asked for.",
            why="An engine only loads in the version that built it.",
            hint=f"Leave --trtllm-version out, or build in {prepared.target.container or wanted}.",
            code="builder_version",
        )


def _arguments(
    prepared: Prepared,
    space: Workspace,
    scratch: Path,
    environment: BuildEnvironment,
    options: build_flags.BuildOptions,
) -> list[str]:
    layout = prepared.manifest_layout
    checkpoint = str((space.folder / CHECKPOINT).resolve())
    arguments = build_flags.build_arguments(
        checkpoint, str(scratch.resolve()), layout, prepared.sizes, options, gpus=len(environment.gpus)
    )
    old_cache = space.folder / ENGINE / "model.cache"
    if old_cache.is_file() and "input_timing_cache" not in options:
        arguments += ["--input_timing_cache", str(old_cache.resolve())]
    return [str(environment.program), *arguments[1:]]


def _run(arguments: list[str], log: Path, folder: Path, report: Progress) -> None:
    """Run the builder with its output in `log`; its last line is shown as progress."""
    with log.open("w", encoding="utf-8") as file:
        try:
            process = subprocess.Popen(
                arguments,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise EnvironmentProblem(
                f"{arguments[0]} cannot be started.", why=str(error), code="builder_start"
            ) from None
        try:
            for line in process.stdout or ():
                file.write(line)
                report(f"building: {line.strip()[:100]}", 0, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
    if code != 0:
        raise _failed(log, f"trtllm-build ended with {_ending(code)}.")


def _ending(code: int) -> str:
    if code == -9:
        return "signal 9: the system most likely ran out of memory (see build_host_memory in ew plan)"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _failed(log: Path, ending: str) -> EnvironmentProblem | ResourceError:
    text = log.read_text(encoding="utf-8", errors="replace")
    cause, fix = explain(text) or ("", "")
    tail = " | ".join(line.strip() for line in text.strip().splitlines()[-TAIL_LINES:])
    return EnvironmentProblem(
        "The engine build failed; the checkpoint is complete.",
        why=f"{ending} {cause or tail}",
        hint=f"{fix} The whole log is {log}.".strip(),
        code="engine_build_failed",
    )


def explain(log: str) -> tuple[str, str] | None:
    """Cause and fix of the first known failure in a build log, or None."""
    for signature in load("build_signatures")["signatures"]:
        texts = [text in log for text in signature["match"]]
        is_there = all(texts) if signature["match_mode"] == "all" else any(texts)
        if is_there or (signature["regex"] and re.search(signature["regex"], log)):
            return signature["cause"], signature["fix"]
    return None


def read_built(folder: Path, checkpoint: dict[str, Any], sizes: Sizes) -> Built | None:
    """Read an engine folder back; None when there is none.

    Raises:
        PackageError: an engine of another model, split or size than planned, or an incomplete one.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found, build = config["pretrained_config"], config["build_config"]
        _check_built(folder, found, build, checkpoint, sizes)
        version = str(config["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _mismatch(folder, f"Its config.json is not readable: {error}") from None
    name, capability = _read_gpu(folder / GPU_FILE)
    return Built(version, None, name, capability)


def _check_built(
    folder: Path, found: dict[str, Any], build: dict[str, Any], checkpoint: dict[str, Any], sizes: Sizes
) -> None:
    pairs = [
        (name, found.get(name), checkpoint.get(name))
        for name in ("architecture", "dtype", "num_hidden_layers")
    ]
    pairs += [
        (name, found["mapping"].get(name), checkpoint["mapping"][name]) for name in ("tp_size", "pp_size")
    ]
    pairs += [("max_batch_size", build.get("max_batch_size"), sizes.max_batch_size)]
    pairs += [("max_seq_len", build.get("max_seq_len"), sizes.max_seq_len)]
    for name, is_value, planned in pairs:
        if is_value != planned:
            raise _mismatch(folder, f"{name} is {is_value}, planned was {planned}")
    world = checkpoint["mapping"]["tp_size"] * checkpoint["mapping"]["pp_size"]
    missing = [f"rank{rank}.engine" for rank in range(world) if not (folder / f"rank{rank}.engine").is_file()]
    if missing:
        raise _mismatch(folder, f"{', '.join(missing)} is missing")


def _mismatch(folder: Path, why: str) -> PackageError:
    return PackageError(
        f"The engine in {folder} does not belong to this package.",
        why=f"{why}.",
        hint=f"Remove {folder} and run the command again.",
        code="engine_mismatch",
    )


def _read_gpu(path: Path) -> tuple[str | None, str | None]:
    try:
        first = path.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return None, None
    name, _, capability = first.rpartition(",")
    return name.strip() or None, capability.strip() or None
