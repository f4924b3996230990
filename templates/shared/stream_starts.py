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
import socket

LONGEST_ID = 4096
PREPROCESSING = "-preprocessing"
POSTPROCESSING = "-postprocessing"


class StartListener:
    """The postprocessing side of model `<M>-postprocessing`."""

    def __init__(self, model_name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        # A second instance, or a reload before the old one ended, goes without.
        with contextlib.suppress(OSError):
            self._socket.bind(_address(model_name.removesuffix(POSTPROCESSING)))

    def read(self) -> list[str]:
        """The request ids that began since the last call, oldest first."""
        started = []
        with contextlib.suppress(BlockingIOError):
            while True:
                started.append(self._socket.recv(LONGEST_ID).decode())
        return started

    def close(self) -> None:
        self._socket.close()


class StartAnnouncer:
    """The preprocessing side of model `<M>-preprocessing`."""

    def __init__(self, model_name: str) -> None:
        self._address = _address(model_name.removesuffix(PREPROCESSING))
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


def _address(base_name: str) -> str:
    """Abstract socket name: one per tritonserver, user and model."""
    digest = hashlib.sha256(base_name.encode()).hexdigest()[:32]
    return f"\0ew-starts-{os.getuid()}-{os.getppid()}-{digest}"
