"""The `docker run` that finishes a package on a GPU machine: quantize, build, note the GPU."""

from __future__ import annotations

import shlex
from pathlib import Path

from builder.build_flags import BuildOptions, build_arguments
from builder.compat import container_for, newest_container
from builder.engine_build import GPU_FILE
from builder.package import CHECKPOINT, ENGINE, QUANTIZED
from builder.prepare import Prepared
from builder.quantization import CALIBRATION_NAMES, quantize_command

DOCKER = ["docker", "run", "--rm", "--gpus", "all", "--ipc=host", "--ulimit", "memlock=-1"]
GPU_QUERY = "nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader"


def remote_command(prepared: Prepared, folder: Path, options: BuildOptions) -> list[str]:
    """The command as arguments; the package is mounted, and convert-trt takes up what it leaves there."""
    container = container_for(prepared.target.tensorrt_llm) or newest_container()
    mounts = ["-v", f"{folder.resolve()}:/package"]
    steps: list[str] = []
    if prepared.request.quantization is not None:
        mounts += ["-v", f"{prepared.inspection.folder.resolve()}:/source:ro", *_calibration_mount(prepared)]
        steps.append(_quantize(prepared, prepared.request.quantization))
    if prepared.target.era == "engine":
        steps += _build(prepared, options)
    return [*DOCKER, *mounts, container.tag, "bash", "-c", " && ".join(steps)]


def _build(prepared: Prepared, options: BuildOptions) -> list[str]:
    build = build_arguments(
        f"/package/{CHECKPOINT}",
        f"/package/{ENGINE}",
        prepared.manifest_layout,
        prepared.sizes,
        options,
        gpus=prepared.layout.world_size,
    )
    return [shlex.join(build), f"{GPU_QUERY} > /package/{ENGINE}/{GPU_FILE}"]


def _quantize(prepared: Prepared, name: str) -> str:
    era = prepared.target.era
    output = CHECKPOINT if era == "engine" else QUANTIZED
    calibration = _calibration_name(prepared)
    return quantize_command(
        name,
        "/source",
        f"/package/{output}",
        prepared.manifest_layout,
        era,
        calibration=f"/calibration/{calibration}" if calibration else None,
    )


def _calibration_name(prepared: Prepared) -> str | None:
    """The part of the data set's path by which ModelOpt recognises it; it is kept inside the container."""
    folder = prepared.request.calibration
    if folder is None:
        return None
    return next(name for name in CALIBRATION_NAMES if name in str(folder.resolve()))


def _calibration_mount(prepared: Prepared) -> list[str]:
    name, folder = _calibration_name(prepared), prepared.request.calibration
    return ["-v", f"{folder.resolve()}:/calibration/{name}:ro"] if name and folder else []
