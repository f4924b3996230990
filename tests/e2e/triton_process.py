"""A real tritonserver over a repository, with a stand-in for the engine where a test wants one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from worker.backend import install_backend

START_SECONDS = 90
SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])


@dataclass(frozen=True)
class Triton:
    """Addresses of a running server; `grpc` is host:port."""

    http: str
    grpc: str
    log: Path


@contextlib.contextmanager
def triton(repository: Path, folder: Path, *, engine: Path | None = None) -> Iterator[Triton]:
    """Serve `repository`; `folder` takes backends and the log.

    Args:
        engine: a model.py that stands in for the backend `tensorrtllm`; the bridge when not given.
    """
    backends = install_backend(folder / "backends")
    if engine is not None:
        (backends / "tensorrtllm" / "model.py").write_bytes(engine.read_bytes())
    ports = _free_ports(3)
    log = folder / "triton.log"
    server = Triton(f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", log)
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(repository, backends, ports), env=_environment(folder), stdout=output, stderr=output
        )
    try:
        _wait_ready(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _command(repository: Path, backends: Path, ports: list[int]) -> list[str]:
    binary = SITE_PACKAGES / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    kinds = ("http", "grpc", "metrics")
    return [
        str(binary),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        *(f"--{kind}-port={port}" for kind, port in zip(kinds, ports, strict=True)),
        *(f"--{kind}-address=127.0.0.1" for kind in kinds),
        "--allow-gpu-metrics=false",
        "--exit-timeout-secs=5",
    ]


def _environment(folder: Path) -> dict[str, str]:
    libraries = [
        SITE_PACKAGES / "nvidia_pytriton.libs",
        sysconfig.get_config_var("LIBDIR"),
        os.environ.get("LD_LIBRARY_PATH"),
    ]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(str(path) for path in libraries if path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "EW_LOG_DIR": str(folder),
    }


def _wait_ready(server: Triton, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, server.log.read_text(errors="replace")[-3000:]
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{server.http}/v2/health/ready", timeout=5).ok:
                return
        time.sleep(0.1)
    raise AssertionError(f"not ready: {server.log.read_text(errors='replace')[-3000:]}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]
