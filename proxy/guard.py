"""uvicorn's HTTP protocol with limits on what a client may hold open, and an end that loses no request."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 << 10
HEADER_SECONDS = 20.0
HEAD = (
    b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n"
    b"x-request-id: %s\r\nx-response-time: %.3fms\r\nserver-timing: total;dur=%.3f\r\n\r\n"
)
SEND_BUFFER_BYTES = 128 << 10  # what the kernel may hold for a client that reads slowly


class GuardedProtocol(HttpToolsProtocol):
    """Ends connections that send headers too slowly or too large, or that do not read their answer.

    A client that was not told `Connection: close` may be sending its next request when the server is about
    to go. So during a drain connections wait a little for one more, whose answer tells.
    """

    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _began = 0.0
    _headers_done = False
    _leaving = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._began = self.loop.time()
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._headers_done:
            self._start_timer()
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self._refuse(
                    b"431 Request Header Fields Too Large",
                    "headers_too_large",
                    f"The headers are larger than {MAX_HEADER_BYTES} bytes.",
                )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._headers_done, self._header_bytes = False, 0
        self._began = self.loop.time()

    def on_headers_complete(self) -> None:
        self._headers_done = True
        _cancel(self._timer)
        self._timer = None
        super().on_headers_complete()
        if self.app.service.draining:
            self.cycle.keep_alive = False  # its task has not begun, so the answer says so

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._leaving and self.cycle.response_complete and not self.transport.is_closing():
            self._wait_for_the_last_request()

    def shutdown(self) -> None:
        """The server is going: the answer that is due says so, or else that to the next request."""
        self._leaving = True
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_the_last_request()
        elif not self.cycle.response_started:
            self.cycle.keep_alive = False

    def _wait_for_the_last_request(self) -> None:
        """What arrives cancels the timer, as it does for every idle connection."""
        self._unset_keepalive_if_required()
        patience = self.app.service.patience()
        if patience:
            self.timeout_keep_alive_task = self.loop.call_later(patience, self.timeout_keep_alive_handler)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer comes: give it a limited time."""
        super().pause_writing()
        seconds = self.app.service.settings.write_timeout
        self._stall = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        _cancel(self._stall)
        self._stall = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._timer)
        _cancel(self._stall)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", "invalid_http", msg)

    def _start_timer(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEADER_SECONDS, self._headers_too_slow)

    def _headers_too_slow(self) -> None:
        self._timer = None
        self._refuse(b"408 Request Timeout", "headers_too_slow", "The headers did not arrive in time.")

    def _refuse(self, status: bytes, code: str, message: str) -> None:
        request_id = os.urandom(16).hex()
        error = {"code": code, "message": message, "hint": "Send a complete HTTP/1.1 request."}
        body = orjson.dumps({"error": error, "requestId": request_id})
        elapsed = (self.loop.time() - self._began) * 1000
        head = HEAD % (status, len(body), request_id.encode(), elapsed, elapsed)
        self.transport.write(head + body)
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
