"""Preprocessing tells postprocessing which request ids begin.

Triton passes a step behind a decoupled model nothing from before that model but the request id, and clients
use the same id again and again; so the two models talk past it, over a datagram socket of the abstract
namespace. Both are children of one tritonserver, whose pid names the socket. Where nobody listens, or the
socket cannot be made, serving goes on without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import threading
from collections import deque

LONGEST_ID = 4096
MOST_STARTS = 100_000
PREPROCESSING = "preprocessing"
POSTPROCESSING = "postprocessing"


class StartListener:
    """The postprocessing side of model `M-postprocessing` (or just `postprocessing`).

    A thread empties the socket, whose queue may be as short as ten messages; `read` empties it once more, so
    that an id that was announced before a call is always in its answer.
    """

    def __init__(self, model_name: str, version: str) -> None:
        self._started: deque[str] = deque(maxlen=MOST_STARTS)
        self._lock = threading.Lock()
        self._closing = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        # A second instance, or a reload before the old one ended, goes without.
        with contextlib.suppress(OSError):
            self._socket.bind(_address(model_name.removesuffix(POSTPROCESSING), version))
            self._thread.start()

    def read(self) -> list[str]:
        """The request ids that began since the last call, oldest first."""
        with self._lock:
            self._receive()
            started = list(self._started)
            self._started.clear()
            return started

    def close(self) -> None:
        self._closing = True
        if self._thread.is_alive():
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self._thread.join()
        self._socket.close()

    def _watch(self) -> None:
        while not self._closing:
            select.select([self._socket], [], [])
            with self._lock:
                self._receive()

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self._socket.recv(LONGEST_ID):
                self._started.append(data.decode(errors="replace"))


class StartAnnouncer:
    """The preprocessing side of model `M-preprocessing`."""

    def __init__(self, model_name: str, version: str) -> None:
        self._address = _address(model_name.removesuffix(PREPROCESSING), version)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def announce(self, request_id: str) -> None:
        data = request_id.encode()
        if data and len(data) <= LONGEST_ID:
            # Nobody listens, or the listener is far behind: it then works by id and age alone.
            with contextlib.suppress(OSError):
                self._socket.sendto(data, self._address)

    def close(self) -> None:
        self._socket.close()


def _address(base_name: str, version: str) -> str:
    """Abstract socket name: one per tritonserver, user, model and version."""
    digest = hashlib.sha256(f"{base_name}/{version}".encode()).hexdigest()[:32]
    return f"\0ew-starts-{os.getuid()}-{os.getppid()}-{digest}"
