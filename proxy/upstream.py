"""The HTTP/1.1 client for tritonserver: pooled keep-alive connections, one event-loop callback a packet.

Written by hand around httptools because this is the hot path: a general client spends several times the CPU
on each token (benchmarks/upstream.py measures it).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import httptools

from common.errors import EngineError, ServiceError

HIGH_WATER = 512  # events a slow reader may leave waiting before the connection is paused
MAX_IDLE = 1024
JSON_HEADERS = b"Content-Type: application/json\r\nContent-Length: %d\r\n"


class ConnectionLost(EngineError):
    """tritonserver closed the connection before its answer was whole."""

    default_code = "upstream_lost"


class Unreachable(ServiceError):
    default_code = "upstream_unreachable"


class Connection(asyncio.Protocol):
    """One connection; carries one exchange at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._exchange: Exchange | None = None
        self._parser: Any = None
        self.transport: Any = None
        self.used = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def start(self, exchange: Exchange, request: bytes) -> None:
        self._exchange = exchange
        self.on_body = exchange.chunks.append  # looked up by the parser: no call of Python's for a token
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # bytes that nobody has asked for
            self.transport.abort()
            return
        if not exchange.chunks:
            exchange.received_at = perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
        exchange.wake()

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        if self._parser.should_keep_alive() and exchange is not None:
            self.used = True
            self._pool.put_back(self)
        else:
            self.transport.close()
        if exchange is not None:
            exchange.finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.forget(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.finish(ConnectionLost("tritonserver closed the connection before its answer was whole."))
            exchange.wake()

    def abort(self) -> None:
        """Drop the connection at once; tritonserver sees it at its next write."""
        self._exchange = None
        self.transport.abort()


class Exchange:
    """One request and its answer as it arrives: `chunks` holds what nobody has read yet.

    A reader waits for `change`, or sets `listener`, which is called when `take` has something.
    """

    def __init__(self) -> None:
        self.status = 0
        self.chunks: list[bytes] = []
        self.received_at = 0.0  # when the first of `chunks` arrived, or the last that was taken
        self.done = False
        self.error: EngineError | ServiceError | None = None
        self.connection: Connection | None = None
        self.reused = False
        self.listener: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False

    def finish(self, error: EngineError | ServiceError | None) -> None:
        """Nothing more will arrive; `wake` tells."""
        self.done, self.error = True, self.error or error
        self.connection = None

    def wake(self) -> None:
        """Tell the reader, if there is something for it; pause the connection of a slow one."""
        if not (self.chunks or self.done):
            return
        if self.listener is not None:
            self.listener()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if len(self.chunks) >= HIGH_WATER and self.connection is not None and not self._paused:
            self._paused = True
            self.connection.transport.pause_reading()

    def take(self) -> bytes | None:
        """What has arrived, joined; b"" at the end, None when there is nothing yet (then await `change`).

        Raises:
            EngineError, ServiceError: the connection broke before the answer was whole.
        """
        if self.chunks:
            data = b"".join(self.chunks)
            self.chunks.clear()
            if self._paused:
                self._resume()
            return data
        if self.error is not None:
            raise self.error
        return b"" if self.done else None

    def ready(self) -> bool:
        """Whether `take` has something."""
        return bool(self.chunks) or self.done

    def change(self) -> asyncio.Future[None]:
        """Done when `take` has something new."""
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    async def read(self) -> bytes:
        """`take`, waiting for it."""
        while (data := self.take()) is None:
            await self.change()
        return data

    def abort(self) -> None:
        """Give up: close the connection, drop what waits, let a reader see the end."""
        if self.connection is not None:
            self.connection.abort()
        self.chunks.clear()
        self.finish(None)
        self.wake()

    def _resume(self) -> None:
        self._paused = False
        if self.connection is not None:
            self.connection.transport.resume_reading()


class Pool:
    """Connections to one tritonserver."""

    def __init__(self, url: str, header: bytes = b"") -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ServiceError(f"{url!r} is not an http:// address of a tritonserver.")
        self.url = url
        self._host, self._port = parts.hostname, parts.port or 80
        self._base = parts.path.rstrip("/")
        self._idle: deque[Connection] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._header = header  # a line of every request

    async def open(self, method: str, path: str, body: bytes = b"", *, headers: bytes = b"") -> Exchange:
        """Send a request; the answer arrives in the Exchange.

        Raises:
            Unreachable: no connection can be made.
        """
        request = self._request(method, path, body, headers)
        exchange = Exchange()
        connection = self._take() or await self._connect()
        exchange.connection, exchange.reused = connection, connection.used
        connection.start(exchange, request)
        return exchange

    async def request(
        self, method: str, path: str, body: bytes = b"", *, timeout: float = 5.0
    ) -> tuple[int, bytes]:
        """A small control call: status and whole body; tried again when a kept connection was dead."""
        for last in (False, True):
            exchange = await asyncio.wait_for(self.open(method, path, body), timeout)
            try:
                return await asyncio.wait_for(_read_all(exchange), timeout)
            except ConnectionLost:
                if last or not exchange.reused:
                    raise
            except asyncio.TimeoutError:
                exchange.abort()
                raise Unreachable(f"tritonserver at {self.url} does not answer.") from None
        raise AssertionError("unreachable")

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the request, holding a reference until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def put_back(self, connection: Connection) -> None:
        if len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.transport.close()

    def forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """Wait for what was spawned (stop requests), then close the idle connections."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=2)
        while self._idle:
            self._idle.pop().transport.close()

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self), self._host, self._port)
        except OSError as error:
            raise Unreachable(
                f"tritonserver at {self.url} cannot be reached.",
                why=str(error),
                hint="./ew status shows what is running; ./ew logs triton shows why not.",
            ) from None
        return connection

    def _request(self, method: str, path: str, body: bytes, headers: bytes) -> bytes:
        target = f"{method} {self._base}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        length = JSON_HEADERS % len(body) if body or method == "POST" else b""
        return b"".join((target.encode("ascii"), self._header, headers, length, b"\r\n", body))


async def _read_all(exchange: Exchange) -> tuple[int, bytes]:
    parts = []
    while chunk := await exchange.read():
        parts.append(chunk)
    return exchange.status, b"".join(parts)
