"""Which of the ways to run tritonserver is taken, and why; the rest follows from that."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from common.errors import EnvironmentProblem, EwError, UsageError
from runtime import launch
from runtime.launchers import gate
from runtime.launchers.commands import (
    container_name,
    docker_command,
    hf_cache_folder,
    local_command,
    pytriton_command,
)
from runtime.launchers.gpus import choose_gpus
from runtime.launchers.images import choose_image
from runtime.launchers.machine import TRITON_ROOT, LocalServer, Machine
from runtime.launchers.request import Launcher, LaunchPlan, LaunchRequest, Parallel
from worker.backend import pytriton_folder

Planned = tuple[LaunchPlan, gate.Runtime]
ORDER: tuple[Launcher, ...] = ("local", "pytriton", "docker")


def plan_launch(request: LaunchRequest, machine: Machine, *, dry_run: bool = False) -> LaunchPlan:
    """The exact way to start; `dry_run` plans also for a machine that is not this one (no GPU, no Docker).

    Raises:
        UsageError: contradicting options.
        EnvironmentProblem: no way works here, or a version does not fit; says which and what to do.
        ResourceError: too few GPUs or too little memory.
    """
    path_problem = gate.path_problem(request)
    if path_problem and not dry_run:
        raise _unusable_path(path_problem)
    launcher, reason = choose_launcher(request, machine, dry_run=dry_run)
    parallel = choose_parallel(request)
    gpus = _gpus(request, machine, dry_run=dry_run)
    plan, runtime = _PLANNERS[launcher](request, machine, parallel, gpus)
    problems = gate.problems(request, runtime, machine, gpus)
    if problems and not dry_run:
        raise EnvironmentProblem(
            problems[0], why=" ".join(problems[1:]), hint=_gate_hint(request), code="version_gate"
        )
    if parallel != "single" and launcher == "local" and machine.mpirun is None and not dry_run:
        raise EnvironmentProblem(
            "mpirun is not on the path, and these models need several ranks.",
            hint="Install Open MPI (apt install openmpi-bin libopenmpi-dev), or use --launcher docker.",
            code="mpirun_missing",
        )
    warnings = [*filter(None, [path_problem]), *problems, *gate.warnings(runtime, machine)]
    if _computes_without_gpu(request, machine):
        warnings.append("No GPU is visible here: the engine cuda-hf computes on the CPU, slowly.")
    if launcher != "docker" and (small := gate.shm_warning(machine)):
        warnings.append(small)
    return replace(plan, reason=reason, warnings=tuple(warnings))


def _unusable_path(problem: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        problem,
        hint="Keep what ew writes in another folder: EW_HOME=/srv/ew ./ew start ... Packages may stay.",
        code="path_unusable",
    )


def choose_launcher(
    request: LaunchRequest, machine: Machine, *, dry_run: bool = False
) -> tuple[Launcher, str]:
    """The launcher and the reason for it: the one asked for, else the first of `ORDER` that can do it."""
    obstacles = {launcher: obstacle(launcher, request, machine) for launcher in ORDER}
    if request.launcher != "auto":
        if obstacles[request.launcher] and not dry_run:
            raise _cannot(request.launcher, obstacles[request.launcher], request)
        return request.launcher, f"--launcher {request.launcher}"
    for launcher in ORDER:
        if not obstacles[launcher]:
            return launcher, _reason(launcher, request, machine)
    if dry_run and request.engine in ("cuda-trt", "cuda-vllm"):
        return "docker", f"what a machine with Docker and a GPU would use (here: {obstacles['docker']})"
    raise _no_way(obstacles, request)


def obstacle(launcher: Launcher, request: LaunchRequest, machine: Machine) -> str:
    """Why a launcher cannot serve the request on this machine, or ""."""
    if launcher == "local":
        return _local_obstacle(request, machine)
    if launcher == "pytriton":
        return _pytriton_obstacle(request, machine)
    if request.engine not in ("cuda-trt", "cuda-vllm"):
        return f"there is no container for the engine {request.engine}"
    if machine.docker.problem:
        return machine.docker.problem.rstrip(".")
    return (
        "" if machine.docker.gpu_ready else "Docker cannot give GPUs to containers (nvidia-container-toolkit)"
    )


def choose_parallel(request: LaunchRequest) -> Parallel:
    """How the ranks of a multi-GPU model come to life.

    Engine era: leader mode (one rank per GPU under mpirun) where all models have as many ranks, else the
    orchestrator, which starts ranks itself. Engines driven from Python start their ranks on their own;
    `llmapi` is for launching under MPI all the same (several nodes, Slurm).
    """
    asked = request.parallel
    if request.needs_bridge:
        if asked in ("leader", "orchestrator"):
            raise _parallel_contradiction(asked, "only the engine era's C++ backend has it")
        return "llmapi" if asked == "llmapi" else "single"
    if asked == "llmapi":
        raise _parallel_contradiction(asked, "trtllm-llmapi-launch is for the PyTorch era")
    sizes = {model.world_size for model in request.models}
    if asked == "leader" and len(sizes) > 1:
        raise _parallel_contradiction(asked, "all models must have the same tp_size * pp_size")
    if asked != "auto":
        return asked
    if sizes <= {1}:
        return "single"
    return "leader" if len(sizes) == 1 else "orchestrator"


def _gpus(request: LaunchRequest, machine: Machine, *, dry_run: bool) -> tuple[int, ...]:
    if request.engine == "cpu" or _computes_without_gpu(request, machine):
        return ()
    if dry_run and not machine.gpus:
        return request.gpus or tuple(range(request.local_gpus))
    return choose_gpus(machine.gpus, request.local_gpus, request.gpus)


def _computes_without_gpu(request: LaunchRequest, machine: Machine) -> bool:
    """Whether this is the trial that cuda-hf allows: PyTorch runs the same code on the CPU."""
    return request.engine == "cuda-hf" and not machine.gpus and not request.gpus


def _plan_local(
    request: LaunchRequest, machine: Machine, parallel: Parallel, gpus: tuple[int, ...]
) -> Planned:
    server = machine.local or _assumed_local()
    runtime = gate.Runtime(f"tritonserver at {server.binary}", server.tensorrt_llm)
    command = local_command(request, server, parallel, gpus)
    return LaunchPlan("local", "", command, parallel, gpus), runtime


def _plan_pytriton(
    request: LaunchRequest, machine: Machine, parallel: Parallel, gpus: tuple[int, ...]
) -> Planned:
    if parallel != "single":
        raise _parallel_contradiction(parallel, "nvidia-pytriton's tritonserver starts no MPI ranks")
    wheel = machine.wheel or pytriton_folder() / "tritonserver"
    python = Path(sys.executable)
    command = pytriton_command(request, wheel, launch.libpython_folder(), python, gpus)
    runtime = gate.Runtime("the engine's environment")
    return LaunchPlan("pytriton", "", command, parallel, gpus), runtime


def _plan_docker(
    request: LaunchRequest, machine: Machine, parallel: Parallel, gpus: tuple[int, ...]
) -> Planned:
    image = choose_image(request)
    command = docker_command(
        request,
        image.tag,
        parallel,
        gpus,
        user=(os.getuid(), os.getgid()),
        hf_cache=hf_cache_folder(os.environ),
        settings=os.environ,
    )
    plan = LaunchPlan(
        "docker",
        "",
        command,
        parallel,
        gpus,
        image=image.tag,
        stop=("docker", "stop", "-t", "30", container_name(request.service_id)),
    )
    return plan, image.runtime


_PLANNERS = {"local": _plan_local, "pytriton": _plan_pytriton, "docker": _plan_docker}


def _assumed_local() -> LocalServer:
    """Where NGC's containers have it: what a dry run shows on a machine without one."""
    return LocalServer(TRITON_ROOT / "bin" / "tritonserver", TRITON_ROOT)


def _gate_hint(request: LaunchRequest) -> str:
    if request.era == "engine":
        return (
            "Serve with the container that built the engine (--launcher docker), or build it again "
            "for this one: ./ew convert-trt --help"
        )
    return "Free the GPU (nvidia-smi shows who holds it), choose others with --gpus, or update the driver."


def _local_obstacle(request: LaunchRequest, machine: Machine) -> str:
    server = machine.local
    if request.engine == "cpu":
        return "the cpu engine runs behind nvidia-pytriton's tritonserver"
    if server is None:
        return "no tritonserver on the path or in /opt/tritonserver"
    if not request.needs_bridge:
        return "" if server.has_engine_backend else f"{server.root} has no TensorRT-LLM backend"
    if not server.has_python_backend:
        return f"{server.root} has no Python backend"
    if request.worker_python:
        return ""
    package = {"cuda-trt": server.tensorrt_llm, "cuda-vllm": server.vllm}.get(request.engine)
    return "" if package else f"its python3 does not have the engine {request.engine}"


def _pytriton_obstacle(request: LaunchRequest, machine: Machine) -> str:
    if not request.needs_bridge:
        return "it has no TensorRT-LLM backend, which the engine era needs"
    if machine.wheel is None:
        return "nvidia-pytriton is not installed"
    if request.engine != "cpu" and request.worker_python is None:
        return f"there is no environment for {request.engine}"
    return ""


def _reason(launcher: Launcher, request: LaunchRequest, machine: Machine) -> str:
    if launcher == "local" and machine.local:
        return f"{machine.local.binary} is on this machine"
    if launcher == "pytriton":
        where = request.worker_python or "the base environment"
        return f"nvidia-pytriton's tritonserver, the engine in {where}"
    return "no tritonserver here can run this engine; Docker can"


def _cannot(launcher: Launcher, why: str, request: LaunchRequest) -> EwError:
    return EnvironmentProblem(
        f"--launcher {launcher} cannot serve these models here.",
        why=f"{why[0].upper()}{why[1:]}.",
        hint="Leave --launcher out to have the right one chosen; ./ew doctor shows what is missing.",
        code="launcher_unusable",
    )


def _no_way(obstacles: dict[Launcher, str], request: LaunchRequest) -> EwError:
    reasons = "; ".join(f"{launcher}: {why}" for launcher, why in obstacles.items())
    return EnvironmentProblem(
        f"Nothing on this machine can serve the engine {request.engine}.",
        why=f"{reasons}.",
        hint=f"Set one up: ./ew setup --engine {request.engine}; ./ew doctor shows what is missing.",
        code="no_launcher",
    )


def _parallel_contradiction(asked: str, why: str) -> UsageError:
    return UsageError(
        f"--parallel {asked} does not fit.", why=f"{why[0].upper()}{why[1:]}.", code="bad_parallel"
    )
