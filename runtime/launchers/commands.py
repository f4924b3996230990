"""The exact command of each way to run tritonserver. Pure: nothing is started or written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runtime.launch import Command, prefixed
from runtime.launchers.arguments import parallel_environment, server_arguments, with_parallel
from runtime.launchers.machine import LocalServer
from runtime.launchers.request import LOG_NAME, LaunchRequest, Parallel
from runtime.ports import TritonPorts
from runtime.processes import SERVICE_VARIABLE

CONTAINER_PORTS = TritonPorts(8000, 8001, 8002)
PASSED_ON = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTPS_PROXY", "NO_PROXY")


def bridge_environment(request: LaunchRequest, worker_python: str) -> dict[str, str]:
    """What the bridge and its workers read."""
    settings = {
        "EW_HOME": str(request.home),
        "EW_ROOT": str(request.source_root),
        "EW_LOG_DIR": str(request.logs),
        "EW_CACHE_DIR": str(request.cache),
        SERVICE_VARIABLE: request.service_id,
    }
    return {**settings, "EW_WORKER_PYTHON": worker_python} if request.needs_bridge else settings


def gpu_environment(gpus: tuple[int, ...]) -> dict[str, str]:
    """The chosen GPUs, numbered as nvidia-smi numbers them."""
    if not gpus:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}


def local_command(
    request: LaunchRequest, server: LocalServer, parallel: Parallel, gpus: tuple[int, ...]
) -> Command:
    """A tritonserver installed on this machine, with its own backends."""
    arguments = server_arguments(request, request.ports)
    return Command(
        LOG_NAME,
        tuple(with_parallel(request, parallel, str(server.binary), arguments, len(gpus))),
        request.logs / f"{LOG_NAME}.log",
        {
            **bridge_environment(request, str(request.worker_python or "python3")),
            **gpu_environment(gpus),
            **parallel_environment(parallel),
        },
    )


def pytriton_command(
    request: LaunchRequest, wheel: Path, stub_libraries: Path, stub_python: Path, gpus: tuple[int, ...]
) -> Command:
    """The tritonserver of the nvidia-pytriton wheel with our bridge; the engine runs in its own environment.

    `wheel` is its tritonserver folder, `stub_libraries` holds libpython, and `stub_python` is the Python
    whose standard library and numpy Triton's Python stub uses.
    """
    arguments = server_arguments(request, request.ports, backend_directory=str(request.backends))
    libraries = wheel.parent.parent / "nvidia_pytriton.libs"
    return Command(
        LOG_NAME,
        (str(wheel / "bin" / "tritonserver"), *arguments),
        request.logs / f"{LOG_NAME}.log",
        {
            "LD_LIBRARY_PATH": prefixed("LD_LIBRARY_PATH", libraries, stub_libraries),
            "PATH": prefixed("PATH", stub_python.parent),
            **bridge_environment(request, str(request.worker_python or stub_python)),
            **gpu_environment(gpus),
        },
    )


def docker_command(
    request: LaunchRequest,
    image: str,
    parallel: Parallel,
    gpus: tuple[int, ...],
    *,
    user: tuple[int, int],
    hf_cache: Path,
    settings: Mapping[str, str],
) -> Command:
    """`docker run` in the foreground: ports on loopback, paths the same inside as outside."""
    server = with_parallel(
        request,
        parallel,
        "tritonserver",
        server_arguments(request, CONTAINER_PORTS, address="0.0.0.0"),
        len(gpus),
    )
    return Command(
        LOG_NAME,
        (
            *("docker", "run", "--rm", "--init", f"--name={container_name(request.service_id)}"),
            *_gpu_options(gpus),
            *(f"--shm-size={request.shm_size}", "--ulimit=memlock=-1", "--ulimit=stack=67108864"),
            *(f"--user={user[0]}:{user[1]}", "--security-opt=no-new-privileges"),
            *(f"--publish=127.0.0.1:{out}:{inside}" for out, inside in _published(request.ports)),
            *(f"--volume={mount}" for mount in mounts(request, hf_cache)),
            *(f"--env={name}" for name in _container_environment(request, parallel, hf_cache, settings)),
            image,
            *server,
        ),
        request.logs / f"{LOG_NAME}.log",
        {SERVICE_VARIABLE: request.service_id},
    )


def container_name(service_id: str) -> str:
    return f"ew-{service_id}"


def mounts(request: LaunchRequest, hf_cache: Path) -> list[str]:
    """Volumes as `outside:inside[:ro]`; engines driven from Python need the worker's code, too."""
    packages = sorted({model.package for model in request.models})
    read_only = [request.repository, *packages]
    volumes = [f"{path}:{path}:ro" for path in read_only]
    volumes += [f"{request.logs}:{request.logs}", f"{hf_cache}:{hf_cache}"]
    if request.needs_bridge:
        volumes += [
            f"{request.source_root}:{request.source_root}:ro",
            f"{request.cache}:{request.cache}",
        ]
    return volumes


def _gpu_options(gpus: tuple[int, ...]) -> tuple[str, ...]:
    if not gpus:
        return ("--gpus=all",)
    # docker reads the value as CSV: without these quotes a comma would begin another field.
    return (f'--gpus="device={",".join(map(str, gpus))}"',)


def _published(ports: TritonPorts) -> list[tuple[int, int]]:
    outside = (ports.http, ports.grpc, ports.metrics)
    inside = (CONTAINER_PORTS.http, CONTAINER_PORTS.grpc, CONTAINER_PORTS.metrics)
    return list(zip(outside, inside, strict=True))


def _container_environment(
    request: LaunchRequest, parallel: Parallel, hf_cache: Path, settings: Mapping[str, str]
) -> list[str]:
    """`NAME=value`, or the bare name where docker takes the value from its own environment: never in argv."""
    fixed = {
        # The user has no entry in the container's passwd, and several libraries ask for a home and a name.
        "HOME": str(request.cache if request.needs_bridge else "/tmp"),
        "USER": "ew",
        "HF_HOME": str(hf_cache),
        "PYTHONDONTWRITEBYTECODE": "1",
        **bridge_environment(request, "python3"),
        **parallel_environment(parallel),
    }
    passed = [name for name in PASSED_ON if settings.get(name)]
    return [*(f"{name}={value}" for name, value in fixed.items()), *passed]


def hf_cache_folder(settings: Mapping[str, str]) -> Path:
    """Where Hugging Face's libraries keep downloads."""
    return Path(settings.get("HF_HOME") or Path(settings.get("HOME", "/tmp")) / ".cache" / "huggingface")
