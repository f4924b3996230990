"""The three logs of a service: triton, worker and proxy."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import ResourceError, UsageError
from common.paths import home

LOGS = ("triton", "worker", "proxy")
KEPT = 3  # older runs of each log, as NAME.log.1 to NAME.log.3
POLL_SECONDS = 0.1
SEARCHED = 20_000  # lines of a log, among which those of one model are looked for
# What names a cause; tritonserver's banner and tables don't.
TROUBLE = re.compile(
    r"^E\d{4}|\berror\b|\bfailed\b|exception|traceback|out of memory|no space left|\bdied\b|\bhung\b",
    re.IGNORECASE,
)
# What getopt says of tritonserver, before pages of usage that speak of errors, too.
REFUSED_OPTION = re.compile(
    r"tritonserver: (?:unrecognized option|option .* (?:is ambiguous|requires an argument))"
)
# How a record begins: tritonserver's letter and date, the worker's time, the proxy's JSON.
RECORD = re.compile(r"[IWEF]\d{4} |\d{4}-\d\d-\d\d |\{\"")
# tritonserver logs these at error level on every machine without a GPU; hwloc where /sys is not mounted.
HARMLESS = re.compile(
    r"^hwloc/|CudaDriverHelper|pinned system memory|"
    r"unable to create stream for |NVML(?!.*(?:mismatch|Unknown Error))"
)


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
            if log_path(name).exists() and not log_path(name).is_file():
                continue  # a link to /dev/stdout or the like stays
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
    if not log_path(name).is_file():
        return []
    with suppress(FileNotFoundError), log_path(name).open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=lines)]
    return []


def marks() -> dict[str, int]:
    """Where each log ends now, in bytes."""
    return {name: log_path(name).stat().st_size for name in LOGS if log_path(name).is_file()}


def since(name: str, marks: Mapping[str, int], most: int = 4000) -> list[str]:
    """The last `most` lines that came after `marks`; all where the log began again since then."""
    if not log_path(name).is_file():
        return []
    with suppress(FileNotFoundError), log_path(name).open("rb") as file:
        before = marks.get(name, 0)
        file.seek(before if before <= os.fstat(file.fileno()).st_size else 0)
        return [line.decode("utf-8", "replace").rstrip("\n") for line in deque(file, maxlen=most)]
    return []


def troubles(name: str, limit: int = 6) -> list[str]:
    """The last lines that name a cause."""
    return troubles_in(tail(name, 400), limit)


def troubles_in(lines: Iterable[str], limit: int = 6) -> list[str]:
    """Those of `lines` that name a cause: the option that was refused, else the last ones."""
    stripped = [line.strip() for line in lines]
    refused = [line for line in stripped if REFUSED_OPTION.search(line)]
    found = [line for line in stripped if TROUBLE.search(line) and not HARMLESS.search(line)]
    return (refused or found)[-limit:]


class ModelFilter:
    """Passes the lines that name a model or one of its Triton models, each with what continues it.

    A line that does not begin as a record does, such as one of a traceback, continues the one before it.
    """

    def __init__(self, model: str) -> None:
        self._mentions = re.compile(rf"(?<![\w.-]){re.escape(model)}(?:-[a-z_]+)?(?![\w-])")
        self._belongs = False

    def __call__(self, line: str) -> bool:
        if RECORD.match(line):
            self._belongs = bool(self._mentions.search(line))
        return self._belongs


@dataclass(frozen=True)
class View:
    """Some logs, whole or as far as they speak of one model."""

    names: tuple[str, ...]
    model: str | None = None

    def tail(self, name: str, lines: int) -> list[str]:
        """The last `lines` of a log that belong to the view."""
        if self.model is None:
            return tail(name, lines)
        found = list(filter(ModelFilter(self.model), tail(name, SEARCHED)))
        return found[-lines:] if lines else []

    def follower(self) -> Follower:
        return Follower(self.names, model=self.model)


def chosen(name: str | None, models: Iterable[str] = ()) -> View:
    """The view that `name` means: a log, or one of `models`; all logs for None.

    Raises:
        UsageError: it is neither.
    """
    if name is None:
        return View(LOGS)
    if name in LOGS:
        return View((name,))
    if name in models:
        return View(LOGS, name)
    raise UsageError(
        f"There is no log or model {name!r}.",
        hint=f"Use one of {', '.join([*LOGS, *models])}; see ./ew logs --help.",
    )


class Follower:
    """New lines of some logs as they are written, from `start_at_end` or from their beginning.

    With `model`, only those that speak of it.
    """

    def __init__(
        self, names: tuple[str, ...], *, start_at_end: bool = True, model: str | None = None
    ) -> None:
        self._tails = [_Tail(name, start_at_end) for name in names]
        self._filters = {name: ModelFilter(model) for name in names if model}

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """(log, line) for all that came since the last call; unfinished lines wait."""
        for log in self._tails:
            for line in log.new_lines():
                if log.name not in self._filters or self._filters[log.name](line):
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
        if not log_path(self.name).is_file():
            return b""
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
