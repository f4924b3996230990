"""Processes known by pid and start time, so that a recycled pid is never taken for one of ours."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SERVICE_VARIABLE = "EW_SERVICE"  # in the environment of everything a service starts, children included


@dataclass(frozen=True)
class ProcessRef:
    """One process of this boot: `started` is its start time in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessRef | None:
        """The process that has `pid` now; None when there is none or it is a zombie."""
        stat = _read_stat(pid)
        return None if stat is None or stat[0] == "Z" else cls(pid, stat[1])

    @property
    def alive(self) -> bool:
        return ProcessRef.of(self.pid) == self

    def send(self, signal_number: int) -> None:
        """Signal it, if it is still the same process."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)


def boot_id() -> str:
    """Changes with every boot; start times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def processes_of(name: str) -> list[ProcessRef]:
    """Every live process with the mark of a service or of one of its servers, whoever its parent is now.

    A server's mark is its service's with `-NUMBER` behind it.
    """
    mark = f"{SERVICE_VARIABLE}={name}".encode()
    found = (ProcessRef.of(pid) for pid in _pids() if _carries(mark, _environment(pid)))
    return [process for process in found if process]


def wait_gone(processes: Iterable[ProcessRef], seconds: float) -> list[ProcessRef]:
    """Wait until all have ended; returns those that have not after `seconds`."""
    left = list(processes)
    deadline = time.monotonic() + seconds
    while left := [process for process in left if process.alive]:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.02)
    return left


def terminate(processes: Iterable[ProcessRef], seconds: float) -> list[ProcessRef]:
    """SIGTERM, wait up to `seconds`, then SIGKILL; returns those that had to be killed."""
    targets = list(processes)
    for process in targets:
        process.send(signal.SIGTERM)
    stubborn = wait_gone(targets, seconds)
    for process in stubborn:
        process.send(signal.SIGKILL)
    wait_gone(stubborn, 5)
    return stubborn


def _pids() -> Iterator[int]:
    own = os.getpid()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != own:
            yield int(entry.name)


def _carries(mark: bytes, environment: list[bytes]) -> bool:
    return any(entry == mark or entry.startswith(mark + b"-") for entry in environment)


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone meanwhile, or another user's
        return []


def _read_stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time out of /proc; the name before them may hold spaces and brackets."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1]
    except (OSError, IndexError):
        return None
    parts = fields.split()
    return parts[0], int(parts[19])
