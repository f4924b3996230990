"""The version gate: what would only fail after minutes of loading is refused before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from builder.gate import Built, ServerVersions, mismatch
from runtime import nvidia
from runtime.launchers.gpus import memory_problem
from runtime.launchers.machine import Machine
from runtime.launchers.request import LaunchRequest, ServedModel
from runtime.nvidia import Gpu

PLAIN_PATH = re.compile(r"[A-Za-z0-9_@%+=:,./~-]+")  # what bash takes as one word without quotes
SMALL_SHM = 256 * 2**20


@dataclass(frozen=True)
class Runtime:
    """What would run the models: versions None where they are not known; `cuda` is what it was built with."""

    name: str
    tensorrt_llm: str | None = None
    cuda: str | None = None
    driver: str | None = None


def problems(request: LaunchRequest, runtime: Runtime, machine: Machine, gpus: tuple[int, ...]) -> list[str]:
    """Everything that cannot work, one sentence each; empty when all fits."""
    chosen = [gpu for gpu in machine.gpus if gpu.index in gpus]
    found = [_engine_problem(model, runtime, chosen) for model in request.models]
    found += [memory_problem(machine.gpus, gpus, model.weight_bytes) for model in request.models]
    found.append(_driver_problem(runtime, machine))
    return [problem for problem in found if problem]


def warnings(runtime: Runtime, machine: Machine) -> list[str]:
    """What works, but not everywhere."""
    if not (runtime.driver and machine.driver) or _driver_problem(runtime, machine):
        return []
    if nvidia.numbers(machine.driver) >= nvidia.numbers(runtime.driver):
        return []
    return [
        f"{runtime.name} was released with driver {runtime.driver}; here is {machine.driver}. CUDA's minor "
        "version compatibility covers it, except for kernels compiled at run time (PTX)."
    ]


def path_problem(request: LaunchRequest) -> str:
    """Triton starts its Python stub by an unquoted line of bash, and the stub knows ASCII paths only."""
    for path in (str(request.repository), str(request.backends)):
        if not path.isascii():
            return f"Triton loads no Python models from {path}: the path has characters beyond ASCII."
        if not PLAIN_PATH.fullmatch(path):
            return f"Triton loads no Python models from {path}: the path has spaces or signs of the shell."
    return ""


def shm_warning(machine: Machine) -> str:
    """Triton's Python models pass tensors through /dev/shm; a container's default is 64 MB."""
    if machine.shm is None or machine.shm >= SMALL_SHM:
        return ""
    return (
        f"/dev/shm has {machine.shm // 2**20} MiB; start this container with more (--shm-size=2g, or a "
        "memory-backed volume there)."
    )


def _engine_problem(model: ServedModel, runtime: Runtime, gpus: list[Gpu]) -> str:
    if model.engine_pending:
        return f"{model.model_id} has no engine yet ({model.engine_pending})."
    if model.era is None:
        return ""
    built = Built(model.era, model.tensorrt_llm, capability=model.capability)
    server = ServerVersions(runtime.tensorrt_llm)
    checks = (mismatch(built, server, gpu.capability, f"GPU {gpu.index} ({gpu.name})") for gpu in gpus)
    found = next((problem for problem in (mismatch(built, server), *checks) if problem), None)
    return f"{model.model_id} does not load in {runtime.name}. {found.why}" if found else ""


def _driver_problem(runtime: Runtime, machine: Machine) -> str:
    if not (runtime.cuda and machine.driver) or nvidia.driver_runs(machine.driver, runtime.cuda):
        return ""
    return (
        f"{runtime.name} needs CUDA {_major_minor(runtime.cuda)} and so driver "
        f"{nvidia.oldest_driver(runtime.cuda)} or later; here is {machine.driver}."
    )


def _major_minor(cuda: str) -> str:
    return ".".join(cuda.split(".")[:2])
