"""uvicorn's HTTP protocol as a connection that a response can be written to directly."""

from __future__ import annotations

from collections.abc import Callable

from proxy.guard import GuardedProtocol
from proxy.http import CONNECTION


class DirectProtocol(GuardedProtocol):
    """It is the `ClientConnection` of its requests."""

    writable = True
    on_writable: Callable[[], None] | None = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]

    def write_part(self, body: bytes) -> None:
        if body and not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.writable = False

    def resume_writing(self) -> None:
        super().resume_writing()
        self._tell_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._tell_writable()

    def _tell_writable(self) -> None:
        self.writable = True
        if self.on_writable is not None:
            self.on_writable()
