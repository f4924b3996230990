"""Checks of the machine: platform, Python, GPUs, disk, memory, shared memory, containers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from common.paths import home
from runtime import nvidia, pythons
from runtime.doctor.catalog import found
from runtime.doctor.finding import Finding
from runtime.launchers.machine import Docker
from runtime.nvidia import Nvidia

GIB = 2**30
SHM = Path("/dev/shm")
LOW_DISK = 5 * GIB
LOW_MEMORY = 1 * GIB
SMALL_SHM = 256 * 2**20
CURRENT_CUDA = "13.0"
OLDEST_CAPABILITY = (8, 0)
TAKEN = 0.5


class Usage(NamedTuple):
    """Bytes of a disk."""

    total: int
    free: int


def check_platform() -> Iterator[Finding]:
    problem = pythons.machine_problem()
    if problem:
        yield found("platform_unsupported", problem)
    version = (sys.version_info[0], sys.version_info[1])
    if version not in pythons.SUPPORTED:
        yield found("python_unsupported", f"Python {version[0]}.{version[1]} at {sys.executable}")
    python = pythons.inspect_python(sys.executable)
    if python is not None and not python.library:
        package = pythons.library_package(version)
        yield found("libpython_missing", pythons.library_name(version), fix=f"Install {package}.")


def check_gpus(seen: Nvidia) -> Iterator[Finding]:
    if not seen.gpus:
        absent = "not on the path" in seen.problem or "no GPU" in seen.problem
        yield found("gpu_none" if absent else "driver_trouble", seen.problem)
        return
    if seen.driver and not nvidia.driver_runs(seen.driver, CURRENT_CUDA):
        yield found("driver_old", f"driver {seen.driver}, CUDA {seen.cuda or 'unknown'}")
    for gpu in seen.gpus:
        where = f"GPU {gpu.index} ({gpu.name})"
        if gpu.capability and nvidia.numbers(gpu.capability) < OLDEST_CAPABILITY:
            yield found("gpu_generation_old", f"compute capability {gpu.capability}", where=where)
        if gpu.memory and gpu.free < gpu.memory * TAKEN:
            free = f"{gpu.free / GIB:.1f} of {gpu.memory / GIB:.1f} GiB free"
            yield found("gpu_memory_taken", free, where=where)


def check_space() -> Iterator[Finding]:
    disk = _usage(home().root)
    if disk.free < LOW_DISK:
        yield found("disk_low", f"{disk.free / GIB:.1f} GiB free", where=str(home().root))
    memory = psutil.virtual_memory().available
    if memory < LOW_MEMORY:
        yield found("memory_low", f"{memory / GIB:.1f} GiB available")
    shm = _usage(SHM)
    if shm.total < SMALL_SHM:
        yield found("shm_small", f"{shm.total / 2**20:.0f} MiB", where=str(SHM))


def check_containers(docker: Docker, seen: Nvidia) -> Iterator[Finding]:
    if docker.problem:
        yield found("docker_unusable", docker.problem)
    elif seen.gpus and not docker.gpu_ready:
        yield found("docker_without_gpu")
    if len(seen.gpus) > 1 and shutil.which("mpirun") is None:
        yield found("mpirun_missing", f"{len(seen.gpus)} GPUs")


def facts(seen: Nvidia) -> dict[str, object]:
    """The machine in figures, for --json and the bundle; sizes in bytes."""
    memory = psutil.virtual_memory()
    return {
        "python": sys.version.split()[0],
        "cpus": psutil.cpu_count(),
        "memory": memory.total,
        "memory_available": memory.available,
        "disk_free": _usage(home().root).free,
        "shm": _usage(SHM).total,
        "driver": seen.driver,
        "cuda": seen.cuda,
        "gpus": [vars(gpu) for gpu in seen.gpus],
    }


def _usage(path: Path) -> Usage:
    """Of the disk that holds `path`, or will when it is made."""
    there = next(place for place in (path, *path.parents) if place.exists())
    usage = shutil.disk_usage(there)
    return Usage(usage.total, usage.free)
