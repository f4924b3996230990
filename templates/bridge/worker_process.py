"""Starts the worker, talks to it, notices when it dies or hangs, and starts it again."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Protocol

import protocol
from bridge_settings import Settings
from protocol import FrameReader, FrameType, Ready, Stats

RECEIVE_BYTES = 1 << 20
POLL_S = 0.5
STOP_TIMEOUT_S = 5.0
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
LOG_TAIL_LINES = 8
LOG_TAIL_BYTES = 8192


class WorkerError(Exception):
    """The worker did not start, or is not there now."""


class Listener(Protocol):
    """Who hears what the worker says; called by the receiving thread, and once by `start`."""

    def on_ready(self, ready: Ready) -> None:
        """A worker serves: the first, or one that took the place of a lost one."""

    def on_frames(self, frames: list[tuple[FrameType, bytes]]) -> None:
        """All frames that were waiting, oldest first."""

    def on_lost(self, reason: str) -> None:
        """The worker has ended; what it was running is lost."""


class WorkerProcess:
    """One run of the worker. Frames out are queued, so that a stuck worker never blocks the caller."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = FrameReader()
        settings.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = settings.log_file.stat().st_size if settings.log_file.exists() else 0
        self._socket, theirs = socket.socketpair()
        with theirs, settings.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                settings.command(theirs.fileno()),
                cwd=settings.root,
                env={**os.environ, **settings.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
            )
        self._socket.settimeout(POLL_S)
        threading.Thread(target=self._write_forever, name="write", daemon=True).start()

    def wait_ready(self) -> Ready:
        """Raises WorkerError when the worker says why it cannot serve, ends or takes too long."""
        deadline = time.monotonic() + self._settings.start_timeout_s
        while time.monotonic() < deadline:
            frames = self.receive()
            if frames is None:
                raise WorkerError(f"{self.describe_end()}{self._log_tail()}")
            for kind, payload in frames:
                if kind == FrameType.READY:
                    return protocol.decode_ready(payload)
                if kind == FrameType.FAILED:
                    failure = protocol.decode_failure(payload)
                    raise WorkerError(f"{failure.message} {failure.hint}".strip())
        raise WorkerError(
            f"The engine worker was not ready after {self._settings.start_timeout_s:g} s.{self._log_tail()}"
        )

    def receive(self) -> list[tuple[FrameType, bytes]] | None:
        """Frames that have arrived, [] after a quiet moment, None when the worker has closed its end."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except TimeoutError:
            return []
        except OSError:
            return None
        return list(self._reader.feed(data)) if data else None

    def send(self, data: bytes) -> None:
        self._outgoing.put(data)

    def stop(self) -> None:
        """End the worker; it leaves by itself when its socket closes."""
        self._outgoing.put(None)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        self._process.kill()

    def describe_end(self) -> str:
        """How the process ended, once its socket has closed."""
        try:
            status = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return f"The engine worker died ({cause})."

    def _write_forever(self) -> None:
        while (data := self._outgoing.get()) is not None:
            try:
                # The socket's timeout is for reading; a busy worker may take longer to read.
                _send_all(self._socket, data)
            except OSError:
                return

    def _log_tail(self) -> str:
        if not self._settings.log_file.is_file():  # a link to /dev/stdout or the like
            return ""
        with self._settings.log_file.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
        tail = "\n".join(lines)
        return (
            f" {self._settings.log_file} ends with:\n{tail}" if tail else f" See {self._settings.log_file}."
        )


def _send_all(end: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        with contextlib.suppress(TimeoutError):
            view = view[end.send(view) :]


class Supervisor:
    """Keeps one worker running: receives for the listener, watches, restarts with growing pauses."""

    def __init__(self, settings: Settings, listener: Listener, log: Callable[[str], None]) -> None:
        self._settings = settings
        self._listener = listener
        self._log = log
        self._closing = threading.Event()
        self._current: WorkerProcess | None = None
        self._problem = "The engine worker has not started."
        self._last_sign_of_life = 0.0
        self._thread = threading.Thread(target=self._run, name="receive", daemon=True)

    def start(self) -> None:
        """Start the worker and wait until it serves. Raises WorkerError."""
        self._current = self._launch()
        self._thread.start()

    def send(self, data: bytes) -> None:
        """Raises WorkerError while the worker is away."""
        current = self._current
        if current is None:
            raise WorkerError(f"{self._problem} It is being started again; try again in a few seconds.")
        current.send(data)

    def close(self) -> None:
        self._closing.set()
        current = self._current
        if current is not None:
            current.stop()
        self._thread.join(STOP_TIMEOUT_S)

    def note_stats(self, stats: Stats) -> None:
        """End a worker whose engine step does not come back."""
        current = self._current
        if stats.step_age_s > self._settings.stall_timeout_s and current is not None:
            self._problem = f"The engine worker hung: one step took more than {stats.step_age_s:.0f} s."
            current.kill()

    def _launch(self) -> WorkerProcess:
        process = WorkerProcess(self._settings)
        try:
            ready = process.wait_ready()
        except Exception:
            process.stop()
            raise
        self._last_sign_of_life = time.monotonic()
        self._listener.on_ready(ready)
        return process

    def _run(self) -> None:
        while not self._closing.is_set():
            self._receive_until_lost()
            if not self._closing.is_set():
                self._listener.on_lost(self._problem)
                self._restart()

    def _receive_until_lost(self) -> None:
        process = self._current
        if process is None:
            return
        self._problem = ""
        try:
            while (frames := process.receive()) is not None:
                self._hear(process, frames)
        except protocol.ProtocolError as error:
            self._problem = f"The engine worker sent what the bridge cannot read: {error}"
            process.kill()
        self._current = None
        if not self._closing.is_set():
            self._problem = self._problem or process.describe_end()
            self._log(self._problem)
            process.stop()

    def _hear(self, process: WorkerProcess, frames: list[tuple[FrameType, bytes]]) -> None:
        if frames:
            self._last_sign_of_life = time.monotonic()
            self._listener.on_frames(frames)
        elif time.monotonic() - self._last_sign_of_life > self._settings.stall_timeout_s:
            self._problem = f"The engine worker hung: silent for {self._settings.stall_timeout_s:g} s."
            process.kill()

    def _restart(self) -> None:
        pause = FIRST_BACKOFF_S
        while not self._closing.wait(pause):
            try:
                self._current = self._launch()
                self._log("The engine worker is serving again.")
                return
            except (WorkerError, protocol.ProtocolError, OSError) as error:
                self._problem = str(error)
                self._log(f"The engine worker did not start again: {error}")
            pause = min(2 * pause, LONGEST_BACKOFF_S)
