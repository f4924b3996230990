"""The three logs of a service: triton, worker and proxy."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from common.errors import ResourceError, UsageError
from common.paths import home

LOGS = ("triton", "worker", "proxy")
KEPT = 3  # older runs of each log, as NAME.log.1 to NAME.log.3
POLL_SECONDS = 0.1
# What names a cause; tritonserver's banner and tables don't.
TROUBLE = re.compile(
    r"^E\d{4}|\berror\b|\bfailed\b|exception|traceback|out of memory|no space left", re.IGNORECASE
)
# tritonserver logs these at error level on every machine without a GPU.
HARMLESS = re.compile(r"CudaDriverHelper|pinned system memory|NVML")


def log_path(name: str) -> Path:
    return home().logs / f"{name}.log"


def rotate() -> None:
    """Begin new logs; the last runs' stay as NAME.log.1 (newest) to NAME.log.3.

    Raises:
        ResourceError: the folder cannot be written.
    """
    try:
        home().logs.mkdir(parents=True, exist_ok=True)
        for name in LOGS:
            _shift(log_path(name))
            log_path(name).touch(mode=0o640)
    except OSError as error:
        raise ResourceError(
            f"Logs cannot be written to {home().logs}.",
            why=f"{error}.",
            hint="Free space or fix its permissions.",
        ) from error


def tail(name: str, lines: int) -> list[str]:
    """The last `lines` lines of a log; none when it does not exist."""
    with suppress(FileNotFoundError), log_path(name).open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=lines)]
    return []


def troubles(name: str, limit: int = 6) -> list[str]:
    """The last lines that name a cause."""
    lines = (line.strip() for line in tail(name, 400))
    return [line for line in lines if TROUBLE.search(line) and not HARMLESS.search(line)][-limit:]


def chosen(name: str | None) -> tuple[str, ...]:
    """The logs that `name` means; all of them for None."""
    if name is None:
        return LOGS
    if name not in LOGS:
        raise UsageError(f"There is no log {name!r}.", hint=f"Use one of {', '.join(LOGS)}.")
    return (name,)


class Follower:
    """New lines of some logs as they are written, from `start_at_end` or from their beginning."""

    def __init__(self, names: tuple[str, ...], *, start_at_end: bool = True) -> None:
        self._tails = [_Tail(name, start_at_end) for name in names]

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """(log, line) for all that came since the last call; unfinished lines wait."""
        for log in self._tails:
            for line in log.new_lines():
                yield log.name, line

    def follow(self) -> Iterator[tuple[str, str]]:
        """(log, line) for ever."""
        while True:
            yield from self.new_lines()
            time.sleep(POLL_SECONDS)


class _Tail:
    """The growing end of one log; starts again when the log was rotated."""

    def __init__(self, name: str, start_at_end: bool) -> None:
        self.name = name
        self._inode = 0
        self._offset = 0
        self._partial = b""
        if start_at_end:
            with suppress(FileNotFoundError):
                status = log_path(name).stat()
                self._inode, self._offset = status.st_ino, status.st_size

    def new_lines(self) -> list[str]:
        try:
            data = self._read()
        except FileNotFoundError:
            return []
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def _read(self) -> bytes:
        with log_path(self.name).open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset, self._partial = status.st_ino, 0, b""
            file.seek(self._offset)
            data = file.read()
            self._offset += len(data)
            return data


def _shift(path: Path) -> None:
    """NAME.log -> NAME.log.1 -> ... ; the oldest is dropped."""
    older = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, KEPT + 1))]
    for source, target in reversed(list(zip(older, older[1:], strict=False))):
        if source.exists():
            source.replace(target)
