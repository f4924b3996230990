"""The engine stage: build it here, take up what was built elsewhere, or say the command that builds it."""

from __future__ import annotations

import shlex
from pathlib import Path

from builder import build_flags, llm_args
from builder.cache import content_key
from builder.compat import container_for, newest_container
from builder.engine_build import GPU_FILE, Built, read_built, run_build
from builder.engine_env import BuildEnvironment, build_environment
from builder.manifest import EngineInfo, Manifest
from builder.package import CHECKPOINT, ENGINE, LLM_ARGS
from builder.prepare import Prepared
from builder.quantization import CALIBRATION_NAMES, quantize_arguments
from builder.request import Progress
from builder.workspace import Workspace
from common import atomic

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
    """What is still to do after the checkpoint; writes llm_args.json in the PyTorch era."""
    if prepared.target.era == "pytorch" and prepared.request.stage == "engine":
        return _pytorch(prepared, folder)
    if prepared.target.era == "pytorch":
        return EngineInfo(state="none", reason="--stage checkpoint; the PyTorch runtime needs no engine")
    command = remote_command(prepared, folder)
    if prepared.request.stage == "checkpoint":
        return EngineInfo(state="none", reason="--stage checkpoint", command=command)
    _, why = build_environment()
    return EngineInfo(state="pending", reason=why or "the build has not finished", command=command)


def _pytorch(prepared: Prepared, folder: Path) -> EngineInfo:
    source = prepared.source
    is_hub = source.kind == "hub"
    arguments = llm_args.make_llm_args(
        source.model if is_hub else str(prepared.inspection.folder.resolve()),
        source.revision if is_hub else None,
        prepared.manifest_layout,
        prepared.sizes,
        prepared.options,
    )
    atomic.write_json(folder / LLM_ARGS, arguments)
    version = prepared.target.tensorrt_llm
    reason = f"TensorRT-LLM {version} with the PyTorch runtime loads the Hugging Face checkpoint itself"
    return EngineInfo(state="none", reason=reason, tensorrt_llm=version)


def remote_command(prepared: Prepared, folder: Path) -> list[str]:
    """The `docker run` that finishes the package on a GPU machine; run convert-trt again to take it up."""
    container = container_for(prepared.target.tensorrt_llm) or newest_container()
    mounts = ["-v", f"{folder.resolve()}:/package"]
    steps = []
    if prepared.request.quantization:
        mounts += ["-v", f"{prepared.inspection.folder.resolve()}:/source:ro"]
        calibration, more = _calibration(prepared)
        mounts += more
        arguments = quantize_arguments(
            prepared.request.quantization,
            "/source",
            f"/package/{CHECKPOINT}",
            prepared.manifest_layout,
            calibration=calibration,
        )
        steps.append(shlex.join(arguments))
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


def make_engine(prepared: Prepared, space: Workspace, manifest: Manifest, report: Progress) -> EngineInfo:
    """The engine of a sealed package: the present one, one built elsewhere, or built now; else pending."""
    environment, _ = build_environment()
    if is_current(prepared, manifest, environment):
        return manifest.engine
    if manifest.engine.state != "built":
        built = read_built(space.folder / ENGINE, prepared.config, prepared.sizes)
        if built is not None:
            return _info(prepared, built, "built on a GPU machine with the printed command")
    if environment is None:
        return outlook(prepared, space.folder)
    built = run_build(prepared, space, environment, effective(prepared), report)
    return _info(prepared, built, f"built here by {environment.program}")


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
