"""Advisory locks between processes: held while a file descriptor is open, so a crash always frees them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RETRY_SECONDS = 0.02


class Busy(Exception):
    """Another process holds the lock."""


@contextmanager
def file_lock(path: Path, *, patience: float | None = None) -> Iterator[None]:
    """Hold the lock file `path`; the file itself stays. Waits `patience` seconds, or for ever.

    Raises:
        Busy: another process held it all the time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # O_CLOEXEC (Python's default) keeps servers started under the lock from inheriting it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, path, patience)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, patience: float | None) -> None:
    deadline = None if patience is None else time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if deadline is None else fcntl.LOCK_NB))
        except BlockingIOError:
            if deadline is not None and time.monotonic() >= deadline:
                raise Busy(str(path)) from None
            time.sleep(RETRY_SECONDS)
