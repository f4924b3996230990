"""What must hold before gigabytes are downloaded: platform, driver, GPU, disk, Python, MPI."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime import nvidia
from runtime.environments.plan import CONDA, SetupRequest
from runtime.environments.releases import disk_bytes, is_known, load
from runtime.nvidia import Nvidia

GB = 10**9
OLDEST_GLIBC = (2, 28)  # manylinux_2_28, the wheels' tag
OLDEST_CAPABILITY = {"cuda-trt": (8, 0), "cuda-vllm": (7, 0), "cuda-hf": (7, 5)}
OLDEST_KNOWN = (7, 0)
NAMES = {"cuda-trt": "TensorRT-LLM", "cuda-vllm": "vLLM", "cuda-hf": "PyTorch"}


@dataclass(frozen=True)
class Problem:
    """`error` stops the setup unless it is forced; `warning` is only said."""

    id: str
    severity: Literal["error", "warning"]
    what: str
    hint: str = ""

    def as_dict(self) -> dict[str, str]:
        return dict(vars(self))


def check(request: SetupRequest, seen: Nvidia) -> list[Problem]:
    """Everything that speaks against this setup on this machine."""
    if request.engine == "cpu":
        return list(_disk(request))
    found = [*_platform(), *_gpus(request, seen), *_disk(request)]
    if request.manager not in ("container", "system"):
        found += [*_python(request), *_mpi(request), *_release(request)]
    found += _manager(request)
    return found


def _platform() -> Iterator[Problem]:
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        yield Problem("platform", "error", f"The wheels are for Linux; this is {platform.platform()}.")
    library, version = platform.libc_ver()
    if library == "glibc" and nvidia.numbers(version) < OLDEST_GLIBC:
        wanted = ".".join(map(str, OLDEST_GLIBC))
        yield Problem("glibc", "error", f"The wheels need glibc {wanted}; here is {version}.")


def _gpus(request: SetupRequest, seen: Nvidia) -> Iterator[Problem]:
    if not seen.gpus:
        yield Problem("gpu", "error", seen.problem, "Install the driver and check nvidia-smi; or --force.")
        return
    cuda = request.release.cuda if request.release else None
    if cuda and seen.driver and not nvidia.driver_runs(seen.driver, cuda):
        oldest = nvidia.oldest_driver(cuda)
        yield Problem(
            "driver",
            "error",
            f"CUDA {cuda} needs driver {oldest} or later; here is {seen.driver}.",
            "Update the driver, or choose an older release with --version.",
        )
    lowest = OLDEST_CAPABILITY[request.engine]
    for gpu in seen.gpus:
        if gpu.capability and nvidia.numbers(gpu.capability) < lowest:
            yield Problem(
                "capability",
                "error" if nvidia.numbers(gpu.capability) < OLDEST_KNOWN else "warning",
                f"GPU {gpu.index} ({gpu.name}) has compute capability {gpu.capability}; "
                f"{NAMES[request.engine]} lists {lowest[0]}.{lowest[1]} and later.",
                "Choose other GPUs at start with --gpus.",
            )


def _disk(request: SetupRequest) -> Iterator[Problem]:
    place = next(parent for parent in [request.folder, *request.folder.parents] if parent.exists())
    needed, free = disk_bytes(request.engine), shutil.disk_usage(place).free
    if free < needed:
        yield Problem(
            "disk",
            "error",
            f"{place} has {free / GB:.0f} GB free; setting up takes about {needed / GB:.0f} GB.",
            "Free some, or move the installation with EW_HOME.",
        )


def _manager(request: SetupRequest) -> Iterator[Problem]:
    program = {"container": "docker", "venv": None, "system": None}.get(request.manager, request.manager)
    if program and shutil.which(program) is None:
        yield Problem(
            "manager", "error", f"{program} is not on the path.", "Install it, or use --manager venv."
        )


def _python(request: SetupRequest) -> Iterator[Problem]:
    version = request.python if request.manager in CONDA or request.uv else _version_of(request.python)
    known: list[str] = load()["python"]
    if not version:
        yield Problem(
            "python",
            "error",
            f"{request.python} does not start.",
            "Install that Python with its venv module, name another with --python, or install uv or "
            "conda, which bring their own.",
        )
    if request.engine == "cuda-trt" and version and version not in known:
        yield Problem(
            "python",
            "error",
            f"TensorRT-LLM has wheels for Python {' and '.join(known)}; asked for is {version}.",
            "Choose one with --python.",
        )


def _version_of(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _mpi(request: SetupRequest) -> Iterator[Problem]:
    if request.engine != "cuda-trt" or request.manager in CONDA or _has_library("libmpi.so"):
        return
    yield Problem(
        "mpi",
        "warning",
        "Open MPI's library is not installed; tensorrt_llm loads it at import.",
        "sudo apt-get install -y libopenmpi-dev openmpi-bin",
    )


def _has_library(name: str) -> bool:
    tool = shutil.which("ldconfig") or "/sbin/ldconfig"
    if not Path(tool).exists():
        return True
    listing = subprocess.run([tool, "-p"], capture_output=True, text=True, errors="replace").stdout
    return any(line.strip().startswith(name) for line in listing.splitlines())


def _release(request: SetupRequest) -> Iterator[Problem]:
    if request.release and not is_known(request.engine, request.release.version):
        yield Problem(
            "release",
            "warning",
            f"{NAMES[request.engine]} {request.release.version} is not in ew's table; it "
            "takes the pins of the nearest older release.",
        )
