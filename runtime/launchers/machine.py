"""Which tritonservers this machine has: one of its own, the nvidia-pytriton wheel, Docker."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import EnvironmentProblem
from runtime import nvidia
from runtime.nvidia import Gpu
from worker.backend import pytriton_folder

TRITON_ROOT = Path("/opt/tritonserver")
SHM = Path("/dev/shm")
CPP_BACKEND = "libtriton_tensorrtllm.so"
VERSION_PROBE = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


@dataclass(frozen=True)
class LocalServer:
    """A tritonserver installed on this machine, as in NGC's containers; versions where they are known."""

    binary: Path
    root: Path
    version: str | None = None
    tensorrt_llm: str | None = None
    vllm: str | None = None

    @property
    def has_engine_backend(self) -> bool:
        return (self.root / "backends" / "tensorrtllm" / CPP_BACKEND).is_file()

    @property
    def has_python_backend(self) -> bool:
        return (self.root / "backends" / "python" / "libtriton_python.so").is_file()


@dataclass(frozen=True)
class Docker:
    """`problem` says why it cannot be used, or is empty; `gpu_ready`: it can give GPUs to containers."""

    program: Path | None = None
    problem: str = "docker is not on the path."
    gpu_ready: bool = False


@dataclass(frozen=True)
class Machine:
    """What a launch can be built from; `wheel` is the folder of the tritonserver inside nvidia-pytriton."""

    local: LocalServer | None = None
    wheel: Path | None = None
    docker: Docker = Docker()
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    mpirun: Path | None = None
    shm: int | None = None  # bytes of /dev/shm, where it was looked at


def inspect(environment: Mapping[str, str] | None = None) -> Machine:
    """Look at this machine; starts nothing but version questions."""
    settings = os.environ if environment is None else environment
    found = nvidia.inspect()
    mpirun = shutil.which("mpirun", path=settings.get("PATH"))
    return Machine(
        local=find_local(settings),
        wheel=find_wheel(),
        docker=find_docker(settings),
        gpus=found.gpus,
        driver=found.driver,
        mpirun=Path(mpirun) if mpirun else None,
        shm=shutil.disk_usage(SHM).total if SHM.is_dir() else None,
    )


def find_local(settings: Mapping[str, str], root: Path = TRITON_ROOT) -> LocalServer | None:
    """tritonserver on the path, else where NGC's containers keep it."""
    on_path = shutil.which("tritonserver", path=settings.get("PATH"))
    binary = Path(on_path).resolve() if on_path else root / "bin" / "tritonserver"
    if not os.access(binary, os.X_OK):
        return None
    return LocalServer(
        binary,
        binary.parent.parent,
        settings.get("NVIDIA_TRITON_SERVER_VERSION") or settings.get("TRITON_SERVER_VERSION"),
        installed_version("tensorrt_llm", settings),
        installed_version("vllm", settings),
    )


def installed_version(package: str, settings: Mapping[str, str]) -> str | None:
    """A package's version in the `python3` on the path, which is what Triton's Python models get."""
    python = shutil.which("python3", path=settings.get("PATH"))
    if python is None:
        return None
    done = subprocess.run([python, "-c", VERSION_PROBE, package], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or None if done.returncode == 0 else None


def find_wheel() -> Path | None:
    """The tritonserver folder of the installed nvidia-pytriton."""
    try:
        folder = pytriton_folder() / "tritonserver"
    except EnvironmentProblem:
        return None
    return folder if (folder / "bin" / "tritonserver").is_file() else None


def find_docker(settings: Mapping[str, str]) -> Docker:
    """Whether docker is there, its daemon answers, and it can give GPUs to containers."""
    program = shutil.which("docker", path=settings.get("PATH"))
    if program is None:
        return Docker()
    try:
        info = subprocess.run(
            [program, "info", "--format", "{{json .Runtimes}}"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Docker(Path(program), f"docker does not answer: {error}.")
    if info.returncode != 0:
        lines = info.stderr.strip().splitlines() or ["unknown reason"]
        return Docker(Path(program), f"docker does not answer: {lines[-1]}")
    toolkit = shutil.which("nvidia-ctk", path=settings.get("PATH"))
    return Docker(Path(program), "", "nvidia" in info.stdout or toolkit is not None)
