"""Two copies of the service and HAProxy in front of them, ended and brought back as Kubernetes does it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import requests

from common.errors import EnvironmentProblem
from common.paths import SOURCE_ROOT
from runtime import ports

READY_SECONDS = 180
POLL_SECONDS = 0.1
SBIN = "/usr/sbin:/usr/local/sbin"
KEYS_NAME = "keys.json"  # beside the copies' folders: one file for both, as a cluster's Secret is
LOG_NAME = "output.log"
# No retries: what a copy refuses is lost, and is counted. Endpoints change through the runtime API only.
BALANCER = """
global
  stats socket {socket} mode 600 level admin
defaults
  mode {mode}
  retries 0
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend clients
  bind 127.0.0.1:{port}
  default_backend copies
backend copies
  balance leastconn
"""
NAME_THE_COPY = "  http-response set-header X-Copy %s\n"


Mode = Literal["http", "tcp"]


@dataclass(frozen=True)
class Ending:
    """How a pod ends, in seconds after its deletion began, as in its manifest."""

    endpoint_delay: float  # until the balancer has heard of it
    pre_stop: float  # until SIGTERM
    drain: float  # what the service gives running streams
    lame_duck: float  # of that, to idle connections for one more request
    grace: float  # until SIGKILL


@dataclass
class Copy:
    """One service with a home folder of its own, started the way a container starts it."""

    name: str
    home: Path
    port: int
    model: str
    drain: float
    lame_duck: float
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ["--model", self.model, "--port", str(self.port)]
        options += ["--drain", f"{self.drain:g}", "--lame-duck", f"{self.lame_duck:g}"]
        with (self.home / LOG_NAME).open("ab") as log:
            self.process = subprocess.Popen(
                self._command("start", "--foreground", *options),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def is_ready(self) -> bool:
        """What the readiness probe sees."""
        try:
            return requests.get(f"{self.url}/health/ready", timeout=5).ok
        except requests.RequestException:
            return False

    async def wait_ready(self) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        while not await asyncio.to_thread(self.is_ready):
            late = time.monotonic() - began > READY_SECONDS
            if late or self.process is None or self.process.poll() is not None:
                raise SystemExit((self.home / LOG_NAME).read_text(errors="replace")[-3000:])
            await asyncio.sleep(POLL_SECONDS)
        return time.monotonic() - began

    def end(self) -> None:
        """Whatever its state; `ew stop` ends what a killed service left."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.drain + 60)
            self.process.kill()
            self.process.wait()
        subprocess.run(self._command("stop", "--drain", "1"), env=self._environment(), capture_output=True)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), *arguments]

    def _environment(self) -> dict[str, str]:
        keys = self.home.parent / KEYS_NAME
        return {**os.environ, "EW_HOME": str(self.home), "EW_KEYS_FILE": str(keys)}


@dataclass(frozen=True)
class Ended:
    """What became of a copy: seconds from SIGTERM to its end, and whether SIGKILL was needed."""

    sigterm_at: float
    exit_seconds: float
    exit_code: int
    killed: bool


async def end_as_kubernetes(copy: Copy, balancer: Balancer, ending: Ending) -> Ended:
    """Endpoint removal and preStop hook begin together; SIGTERM follows the hook; SIGKILL ends the grace."""
    assert copy.process is not None
    began = time.monotonic()
    removal = asyncio.create_task(balancer.remove(copy.name, after=ending.endpoint_delay))
    await asyncio.sleep(ending.pre_stop)
    sigterm_at = time.monotonic()
    copy.process.send_signal(signal.SIGTERM)
    killed = False
    while copy.process.poll() is None:
        if time.monotonic() - began > ending.grace and not killed:
            copy.process.kill()
            killed = True
        await asyncio.sleep(POLL_SECONDS)
    await removal
    return Ended(sigterm_at, time.monotonic() - sigterm_at, copy.process.returncode, killed)


@dataclass(frozen=True)
class Balancer:
    """A running HAProxy."""

    url: str
    control: Path

    async def remove(self, name: str, *, after: float) -> None:
        """No new requests to it; those that run go on."""
        await asyncio.sleep(after)
        self._command(f"set server copies/{name} state drain")

    def add(self, name: str) -> None:
        self._command(f"set server copies/{name} state ready")

    def _command(self, text: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(self.control))
            connection.sendall(f"{text}\n".encode())
            answer = connection.recv(4096).strip()
        if answer:
            raise RuntimeError(f"haproxy: {answer.decode()}")


@contextlib.contextmanager
def balancer(copies: list[Copy], folder: Path, mode: Mode) -> Iterator[Balancer]:
    """HAProxy over the copies: of requests, as an ingress is, or of connections, as a Service alone."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path=SBIN)
    if program is None:
        raise EnvironmentProblem(
            "haproxy is not installed.", hint="apt-get install haproxy", code="no_haproxy"
        )
    control = folder / "haproxy.sock"
    port = free_port()
    servers = [f"  server {copy.name} 127.0.0.1:{copy.port}\n" for copy in copies]
    config = folder / "haproxy.cfg"
    backend = [NAME_THE_COPY if mode == "http" else "", *servers]
    config.write_text(BALANCER.format(socket=control, port=port, mode=mode) + "".join(backend))
    log = folder / "haproxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "-db", "-f", str(config)], stdout=output, stderr=output)
    try:
        while not control.exists():
            if process.poll() is not None:
                raise SystemExit(log.read_text(errors="replace"))
            time.sleep(POLL_SECONDS)
        yield Balancer(f"http://127.0.0.1:{port}", control)
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with ports.reserve_any() as reserved:
        return ports.port_of(reserved)
