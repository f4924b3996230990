"""The engine stage: build it here, take up what was built elsewhere, or say the command that builds it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from builder import build_flags, llm_args
from builder.cache import PackageIndex, content_key, link_part
from builder.compat import container_for, newest_container
from builder.engine_build import GPU_FILE, Built, read_built, run_build
from builder.engine_env import BuildEnvironment, build_environment
from builder.manifest import EngineInfo, FileEntry, Manifest, write_manifest
from builder.package import CHECKPOINT, ENGINE, LLM_ARGS
from builder.prepare import Prepared
from builder.quantization import CALIBRATION_NAMES, quantize_command
from builder.request import Progress
from builder.workspace import Workspace
from common import atomic
from common.errors import PackageError

DOCKER = ["docker", "run", "--rm", "--gpus", "all", "--ipc=host", "--ulimit", "memlock=-1"]


def engine_key(prepared: Prepared, capability: str | None) -> str:
    """Content address of an engine: checkpoint, sizes, options, TensorRT-LLM version and GPU generation."""
    return content_key(
        checkpoint=prepared.key,
        sizes=prepared.sizes.model_dump(),
        options=effective(prepared),
        tensorrt_llm=prepared.target.tensorrt_llm,
        capability=capability,
    )


def effective(prepared: Prepared) -> build_flags.BuildOptions:
    return build_flags.effective_options(
        prepared.options, quantized=prepared.request.quantization is not None
    )


def outlook(prepared: Prepared, folder: Path) -> EngineInfo:
    """What is still to do after the checkpoint."""
    version, stage = prepared.target.tensorrt_llm, prepared.request.stage
    if prepared.target.era == "pytorch":
        reason = f"TensorRT-LLM {version} with the PyTorch runtime loads the Hugging Face checkpoint itself"
        return EngineInfo(state="none", reason=reason, tensorrt_llm=version)
    command = remote_command(prepared, folder)
    if stage == "checkpoint":
        return EngineInfo(state="none", reason="--stage checkpoint", command=command)
    _, why = build_environment()
    if not why and not (folder / CHECKPOINT).is_dir():
        why = f"{prepared.request.quantization} weights are made in the container"
    return EngineInfo(state="pending", reason=why or "the build has not finished", command=command)


def write_llm_args(prepared: Prepared, space: Workspace) -> bool:
    """PyTorch era: `llm_args.json` instead of an engine. True when changed, which unmakes the package."""
    if prepared.target.era != "pytorch" or prepared.request.stage != "engine":
        return False
    source, path = prepared.source, space.folder / LLM_ARGS
    is_hub = source.kind == "hub"
    arguments = llm_args.make_llm_args(
        source.model if is_hub else str(prepared.inspection.folder.resolve()),
        source.revision if is_hub else None,
        prepared.manifest_layout,
        prepared.sizes,
        prepared.options,
    )
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == arguments:
        return False
    space.forget_manifest()
    atomic.write_json(path, arguments)
    return True


def remote_command(prepared: Prepared, folder: Path) -> list[str]:
    """The `docker run` that finishes the package on a GPU machine; run convert-trt again to take it up."""
    container = container_for(prepared.target.tensorrt_llm) or newest_container()
    mounts = ["-v", f"{folder.resolve()}:/package"]
    steps: list[str] = []
    if prepared.request.quantization:
        mounts += ["-v", f"{prepared.inspection.folder.resolve()}:/source:ro"]
        calibration, more = _calibration(prepared)
        mounts += more
        step = quantize_command(
            prepared.request.quantization,
            "/source",
            f"/package/{CHECKPOINT}",
            prepared.manifest_layout,
            calibration=calibration,
        )
        steps.append(step)
    build = build_flags.build_arguments(
        f"/package/{CHECKPOINT}",
        f"/package/{ENGINE}",
        prepared.manifest_layout,
        prepared.sizes,
        effective(prepared),
        gpus=prepared.layout.world_size,
    )
    steps.append(shlex.join(build))
    query = "nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader"
    steps.append(f"{query} > /package/{ENGINE}/{GPU_FILE}")
    return [*DOCKER, *mounts, container.tag, "bash", "-c", " && ".join(steps)]


def _calibration(prepared: Prepared) -> tuple[str | None, list[str]]:
    """Where the calibration data is in the container: mounted under a name that ModelOpt recognises."""
    folder = prepared.request.calibration
    if folder is None:
        return None, []
    name = next(name for name in CALIBRATION_NAMES if name in str(folder.resolve()))
    return f"/calibration/{name}", ["-v", f"{folder.resolve()}:/calibration/{name}:ro"]


def is_current(prepared: Prepared, manifest: Manifest, environment: BuildEnvironment | None) -> bool:
    """Whether the package's engine is what would be built now, on this machine's GPU if it has one."""
    engine = manifest.engine
    if engine.state != "built" or manifest.keys.engine != engine_key(prepared, engine.compute_capability):
        return False
    return environment is None or environment.gpus[0].compute_capability == engine.compute_capability


def next_engine(
    prepared: Prepared, space: Workspace, index: PackageIndex, manifest: Manifest, report: Progress
) -> EngineInfo:
    """The engine that a sealed package should have: the present one, one from elsewhere, or built now.

    Raises:
        EnvironmentProblem: the build failed; the package stays as it was.
    """
    present = manifest.engine
    if prepared.request.stage != "engine" or prepared.target.era != "engine":
        return present if present.state == "built" else outlook(prepared, space.folder)
    environment, _ = build_environment()
    if is_current(prepared, manifest, environment):
        return present
    if present.state != "built":
        built = _taken_up(prepared, space, can_build=environment is not None)
        if built is not None:
            return _info(prepared, built, "built on a GPU machine with the printed command")
    if environment is None or not (space.folder / CHECKPOINT).is_dir():
        return outlook(prepared, space.folder)
    return _make(prepared, space, index, manifest, environment, report)


def _taken_up(prepared: Prepared, space: Workspace, *, can_build: bool) -> Built | None:
    """An engine built elsewhere; one that does not match is an error only where none can be built."""
    try:
        return read_built(space.folder / ENGINE, prepared.config, prepared.sizes)
    except PackageError:
        if can_build:
            return None
        raise


def _make(
    prepared: Prepared,
    space: Workspace,
    index: PackageIndex,
    manifest: Manifest,
    environment: BuildEnvironment,
    report: Progress,
) -> EngineInfo:
    """Link an equal engine or build one in scratch space, then put it in the place of the old one."""
    found = index.find_engine(engine_key(prepared, environment.gpus[0].compute_capability))
    if found is not None:
        link_part(found, ENGINE, space.fresh_scratch(ENGINE))
        info = found.manifest.engine
    else:
        built = run_build(prepared, space, environment, effective(prepared), report)
        info = _info(prepared, built, f"built here by {environment.program}")
    _drop_old(prepared, space, manifest)
    space.place(ENGINE)
    return info


def _drop_old(prepared: Prepared, space: Workspace, manifest: Manifest) -> None:
    """While the engine is exchanged the manifest must not promise the old one."""
    if manifest.engine.state == "built":
        rest = without_engine(manifest.files)
        pending = {"engine": outlook(prepared, space.folder), "files": rest}
        write_manifest(space.folder, manifest.model_copy(update=pending))


def without_engine(files: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """The entries whose content does not depend on the engine and its arguments."""
    changing = (f"{ENGINE}/", LLM_ARGS)
    return {name: entry for name, entry in files.items() if not name.startswith(changing)}


def _info(prepared: Prepared, built: Built, reason: str) -> EngineInfo:
    container = container_for(built.tensorrt_llm)
    return EngineInfo(
        state="built",
        reason=reason,
        build_options=effective(prepared),
        tensorrt_llm=built.tensorrt_llm,
        tensorrt=built.tensorrt or (container.tensorrt if container else None),
        gpu=built.gpu,
        compute_capability=built.compute_capability,
    )
