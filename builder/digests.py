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
from types import TracebackType

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


class FileDigests:
    """One digest a file; leaving the context ends all threads."""

    def __init__(self, descriptors: list[int], sizes: list[int]) -> None:
        self._files = [FileDigest(*pair) for pair in zip(descriptors, sizes, strict=True)]

    def complete(self, file: int, ranges: Iterable[Range]) -> None:
        self._files[file].complete(ranges)

    def finish(self) -> list[str]:
        """Hex digests of all files, in order."""
        return [file.finish() for file in self._files]

    def __enter__(self) -> FileDigests:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.stop()


def gaps(ranges: Iterable[Range], size: int) -> list[Range]:
    """What `ranges` leave of [0, size)."""
    found, at = [], 0
    for begin, end in sorted(ranges):
        if begin > at:
            found.append((at, begin))
        at = max(at, end)
    return [*found, (at, size)] if at < size else found
