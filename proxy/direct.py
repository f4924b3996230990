"""uvicorn's HTTP protocol as a connection that a response can be written to directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from proxy.guard import GuardedProtocol
from proxy.http import CONNECTION


class DirectProtocol(GuardedProtocol):
    """It is the `ClientConnection` of its requests, and what uvicorn writes their responses to."""

    writable = True
    on_writable: Callable[[], None] | None = None
    _gone: Callable[[], None] | None = None
    _held: list[bytes] | None = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.cycle.transport = self  # type: ignore[assignment]

    @property
    def has_body(self) -> bool:
        return not self.cycle.more_body

    @contextmanager
    def watch(self, gone: Callable[[], None]) -> Iterator[None]:
        self._gone = gone
        self.flow.resume_reading()  # a large body pauses it, and who does not read sees no end
        if self.transport.is_closing():
            gone()
        try:
            yield
        finally:
            self._gone = None

    @contextmanager
    def together(self) -> Iterator[None]:
        held: list[bytes] = []
        self._held = held
        try:
            yield
        finally:
            self._held = None
            if held:
                self.write(b"".join(held))

    def write(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(data)
        elif not self.transport.is_closing():  # uvloop raises for a closed one
            self.transport.write(data)

    def write_part(self, body: bytes) -> None:
        if body:
            self.write(b"%x\r\n%b\r\n" % (len(body), body))

    def close(self) -> None:
        self.transport.close()

    def is_closing(self) -> bool:
        return self.transport.is_closing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.writable = False

    def resume_writing(self) -> None:
        super().resume_writing()
        self._tell_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._gone is not None:
            self._gone()
        self._tell_writable()

    def _tell_writable(self) -> None:
        self.writable = True
        if self.on_writable is not None:
            self.on_writable()
