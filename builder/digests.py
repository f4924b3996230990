"""SHA-256 of files while they are written, in any order, by others.

A digest needs its bytes in order. Steps finish nearly in order, so each file's digest follows the part
that is complete from its start, reading it back while it still is in the page cache.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import queue
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Protocol

READ_BYTES = 1 << 20
Range = tuple[int, int]


class FileDigest:
    """The digest of one growing file; `complete` is called from one thread only."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        self._waiting: list[Range] = []
        self._prefix = 0
        self._ends: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._digest, self._error = hashlib.sha256(), OSError()
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, name="digest", daemon=True)
        self._thread.start()

    def complete(self, ranges: Iterable[Range]) -> None:
        """File bytes [begin, end) have their final content."""
        for each in ranges:
            heapq.heappush(self._waiting, each)
        before = self._prefix
        while self._waiting and self._waiting[0][0] <= self._prefix:
            self._prefix = max(self._prefix, heapq.heappop(self._waiting)[1])
        if self._prefix > before:
            self._ends.put(self._prefix)

    def _follow(self) -> None:
        buffer, at = bytearray(READ_BYTES), 0
        try:
            while (end := self._ends.get()) is not None:
                while at < end and not self._stopped:
                    count = os.preadv(self._descriptor, [memoryview(buffer)[: end - at]], at)
                    if not count:
                        raise OSError(errno.EIO, f"the file ends at {at} of {self._size} bytes")
                    self._digest.update(memoryview(buffer)[:count])
                    at += count
        except OSError as error:
            self._error = error
            self._stopped = True

    def finish(self) -> str:
        """Hex digest of the whole file; raises what reading it back raised."""
        self._ends.put(None)
        self._thread.join()
        if self._stopped:
            raise self._error
        if self._prefix != self._size:
            raise ValueError(f"{self._size - self._prefix} bytes were never reported complete")
        return self._digest.hexdigest()

    def stop(self) -> None:
        """End without a digest."""
        self._stopped = True
        self._ends.put(None)
        self._thread.join()


class NamedFile(Protocol):
    """A file that is being written."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...


class FileDigests:
    """One digest a file; leaving the context ends all threads. Without descriptors it does nothing."""

    def __init__(self, descriptors: Iterable[int], files: Iterable[NamedFile]) -> None:
        pairs = zip(descriptors, files, strict=False)
        self._files = [(file.name, FileDigest(descriptor, file.size)) for descriptor, file in pairs]

    def complete(self, number: int, ranges: Iterable[Range]) -> None:
        """Byte ranges of file `number` have their final content."""
        if self._files:
            self._files[number][1].complete(ranges)

    def finish(self) -> dict[str, str]:
        """Name to hex digest of every file."""
        return {name: digest.finish() for name, digest in self._files}

    def __enter__(self) -> FileDigests:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, digest in self._files:
            digest.stop()


def sha256_of(path: Path) -> str:
    """Hex digest of a finished file."""
    digest, buffer = hashlib.sha256(), bytearray(READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def gaps(ranges: Iterable[Range], size: int) -> list[Range]:
    """What `ranges` leave of [0, size)."""
    found, at = [], 0
    for begin, end in sorted(ranges):
        if begin > at:
            found.append((at, begin))
        at = max(at, end)
    return [*found, (at, size)] if at < size else found
