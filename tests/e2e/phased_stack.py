"""Proxy, tritonserver, bridge and worker, all real, over the phased engine; how to enter each phase."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.e2e.phased_engine import ENGINE, SLOTS
from tests.e2e.proxy_process import proxy_process
from tests.proxy.packages import write_package
from tests.worker.triton import Triton, wait_until

MODEL = "m"
STREAM, PLAIN = "/api/v1/inference/stream", "/api/v1/inference"
ENGINE_MODULE = "tests.e2e.phased_engine"
WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Phase:
    """A phase is reached when the journal holds `events` of a request with `max_tokens`."""

    name: str
    max_tokens: int
    event: str
    count: int = 1


PHASES = (
    Phase("queued", 1001, "queued"),
    Phase("prefill", 1001, "prefill"),
    Phase("first token", 1002, "token"),
    Phase("mid-stream", 1003, "token", 5),
    Phase("last token", 4, "token", 3),
)
HOLDER = PHASES[1]


@dataclass
class PhasedStack:
    """A running stack; `proxy` may be ended by a test."""

    url: str
    proxy: subprocess.Popen[bytes]
    journal: Path
    triton: Triton
    open: list[socket.socket] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    def send(self, path: str, max_tokens: int, **fields: Any) -> socket.socket:
        """Send a request of the documented API."""
        return self.post(path, {"modelId": MODEL, "prompt": "hi", "maxTokens": max_tokens, **fields})

    def post(self, path: str, document: dict[str, Any]) -> socket.socket:
        """Post JSON on a socket of its own."""
        connection = self.connect()
        self.open.append(connection)
        body = json.dumps(document)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        return connection

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A connection to the proxy that has sent nothing; its buffer in bytes."""
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(WAIT_SECONDS)
        connection.connect((host, int(port)))
        return connection

    def enter(self, phase: Phase, path: str, **fields: Any) -> tuple[socket.socket, int]:
        """Send a request, wait until it is in the phase; the socket, and the engine's id of the request."""
        if phase.name == "queued":
            for _ in range(SLOTS - len(self.running())):
                self.enter(HOLDER, STREAM)
        before = len(self.entries())
        connection = self.send(path, phase.max_tokens, **fields)
        request = self._wait_for(lambda: _reached(self.entries()[before:], phase))
        return connection, request

    def running(self) -> set[int]:
        """Requests that the engine has and has not ended."""
        entries = self.entries()
        ended = {entry["request"] for entry in entries if entry["event"] in ("cancelled", "finished")}
        return {entry["request"] for entry in entries} - ended - self.lost

    def forget(self, request: int) -> None:
        """Do not count a request that ended with its engine."""
        self.lost.add(request)

    def cancelled_at(self, request: int) -> float:
        """When the engine stopped its work on a request (CLOCK_MONOTONIC, seconds)."""
        return float(self._wait_for(lambda: _cancelled(self.entries(), request)))

    def close_all(self) -> None:
        """Leave with every client, and wait until the engine is idle."""
        for connection in self.open:
            connection.close()
        self.open.clear()
        wait_until(lambda: not self.running(), WAIT_SECONDS)

    def workers(self) -> list[psutil.Process]:
        """The engine's processes."""
        children = psutil.Process(self.triton.process.pid).children(recursive=True)
        return [child for child in children if ENGINE_MODULE in child.cmdline()]

    def cancellations(self, reason: str) -> float:
        """`ew_cancellations_total` of a reason."""
        lines = requests.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        wanted = [line for line in lines if line.startswith("ew_cancellations_total{") and reason in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in wanted)

    def _wait_for(self, look: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := look()) is None:
            assert time.monotonic() < deadline, self.entries()[-5:]
            time.sleep(0.002)
        return found


def read_until(connection: socket.socket, word: str) -> str:
    """What arrives, up to and with `word`."""
    data = b""
    while word.encode() not in data:
        part = connection.recv(65536)
        assert part, data
        data += part
    return data.decode()


def _reached(entries: list[dict[str, Any]], phase: Phase) -> int | None:
    """The newest request, once it is where the phase begins."""
    queued = [entry["request"] for entry in entries if entry["event"] == "queued"]
    seen = [entry for entry in entries if queued and entry["request"] == queued[-1]]
    if sum(entry["event"] == phase.event for entry in seen) < phase.count:
        return None
    return int(queued[-1])


def _cancelled(entries: list[dict[str, Any]], request: int) -> float | None:
    wanted = {"event": "cancelled", "request": request}
    return next((entry["at"] for entry in entries if entry.items() >= wanted.items()), None)


@contextlib.contextmanager
def phased_stack(
    folder: Path, *proxy_options: str, model: dict[str, Any] | None = None
) -> Iterator[PhasedStack]:
    """The stack on free ports; everything ends with the block. `model` is more of its config entry."""
    package, journal = write_package(folder / "package"), folder / "journal"
    journal.touch()
    triton = Triton(folder / "triton")
    try:
        triton.wait_ready()
        options = {"journal": str(journal)}
        triton.add_model(
            f"{MODEL}-tensorrt_llm", package, engine=ENGINE, python=_worker_python(folder), options=options
        )
        triton.load(f"{MODEL}-tensorrt_llm")
        with proxy_process(folder, {MODEL: package}, triton, *proxy_options, model=model) as (url, process):
            yield PhasedStack(url, process, journal, triton)
    finally:
        triton.stop()


def _worker_python(folder: Path) -> str:
    """Stands in for the worker's Python: drops `-m worker` and runs the phased engine."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -m {ENGINE_MODULE} "$@"\n')
    path.chmod(0o755)
    return str(path)
