"""The end of a proxy behind a balancer of connections: no client meets a closed connection unawares."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.proxy.stack import MODEL
from tests.proxy.test_process import TOKENS, Process, running

BODY = json.dumps({"modelId": MODEL, "prompt": "hi"}).encode()
WHOLE, STREAM = "/api/v1/inference", "/api/v1/inference/stream"
END_OF_CHUNKS = b"0\r\n\r\n"


class Connection:
    """One kept connection, with every byte in sight."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, path: str, method: str = "POST") -> None:
        body = BODY if method == "POST" else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)

    async def head(self) -> str:
        return (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 20)).decode().lower()

    async def answer(self) -> tuple[str, bytes]:
        """Head and body of one answer, of which the body is whole or this fails."""
        head = await self.head()
        return head, await self.body(head)

    async def body(self, head: str) -> bytes:
        if "transfer-encoding: chunked" in head:
            return await asyncio.wait_for(self._reader.readuntil(END_OF_CHUNKS), 20)
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        return await asyncio.wait_for(self._reader.readexactly(length), 20)

    async def is_closed(self) -> bool:
        """Waits for the server to close it; False when more data came instead."""
        return await asyncio.wait_for(self._reader.read(1), 20) == b""

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(made: Process) -> AsyncIterator[Connection]:
    address = urlsplit(made.url)
    connection = Connection(*await asyncio.open_connection(address.hostname, address.port))
    yield connection
    connection.close()


async def begin_to_end(made: Process) -> None:
    """SIGTERM, and wait until the proxy has heard of it: the port takes nobody any more."""
    await made.client.close()  # its own kept connections are not what is looked at
    made.process.send_signal(signal.SIGTERM)
    for _ in range(200):
        try:
            async with connected(made):
                await asyncio.sleep(0.05)
        except ConnectionRefusedError:
            return
    raise AssertionError("the port was open 10 s after SIGTERM")


async def exit_code(made: Process, seconds: float) -> int:
    return await asyncio.wait_for(made.process.wait(), seconds)


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_idle_connection_carries_one_more_request(
    package: Path, tmp_path: Path, workers: int
) -> None:
    options = (f"--workers={workers}", "--drain=60", "--lame-duck=30")
    async with running(package, tmp_path, *options) as made, connected(made) as connection:
        connection.send(WHOLE)
        head, _ = await connection.answer()
        assert "connection: close" not in head
        await begin_to_end(made)
        connection.send(WHOLE)
        head, body = await connection.answer()
        assert head.startswith("http/1.1 200") and "connection: close" in head
        assert json.loads(body)["usage"]["completionTokens"] == len(TOKENS)
        assert await connection.is_closed()
        assert await exit_code(made, 20) in (0, -signal.SIGTERM)  # well before the drain is over


async def test_a_stream_that_said_nothing_of_closing_is_followed_by_one_more_request(
    package: Path, tmp_path: Path
) -> None:
    options = ("--drain=60", "--lame-duck=30", "--header-hold=0")
    async with running(package, tmp_path, *options) as made, connected(made) as connection:
        made.triton.script.pace = 0.03
        connection.send(STREAM)
        head = await connection.head()
        assert "connection: close" not in head
        await begin_to_end(made)
        assert b"[DONE]" in await connection.body(head)
        connection.send(STREAM)
        head, body = await connection.answer()
        assert head.startswith("http/1.1 200") and "connection: close" in head
        assert b"[DONE]" in body
        assert await connection.is_closed()
        assert await exit_code(made, 20) in (0, -signal.SIGTERM)


async def test_an_answer_that_is_due_says_that_the_connection_closes(package: Path, tmp_path: Path) -> None:
    async with (
        running(package, tmp_path, "--drain=60", "--lame-duck=30") as made,
        connected(made) as connection,
    ):
        made.triton.script.pace = 0.03
        connection.send(WHOLE)
        await asyncio.sleep(0.3)
        await begin_to_end(made)
        head, _ = await connection.answer()
        assert head.startswith("http/1.1 200") and "connection: close" in head
        assert await connection.is_closed()


async def test_requests_in_a_row_are_answered_until_one_says_that_it_is_the_last(
    package: Path, tmp_path: Path
) -> None:
    options = ("--drain=60", "--lame-duck=1", "--header-hold=0")
    async with running(package, tmp_path, *options) as made, connected(made) as connection:
        made.triton.script.pace = 0.03
        connection.send(STREAM)
        head = await connection.head()
        connection.send(STREAM)  # without waiting for the first answer's end
        await begin_to_end(made)
        assert b"[DONE]" in await connection.body(head)
        head, body = await connection.answer()  # longer than an idle connection is waited for
        assert "connection: close" in head and b"[DONE]" in body
        assert await connection.is_closed()


async def test_readiness_is_off_at_once(package: Path, tmp_path: Path) -> None:
    async with (
        running(package, tmp_path, "--drain=60", "--lame-duck=30") as made,
        connected(made) as connection,
    ):
        connection.send("/health/ready", "GET")
        assert (await connection.answer())[0].startswith("http/1.1 200")
        await begin_to_end(made)
        connection.send("/health/ready", "GET")
        head, body = await connection.answer()
        assert head.startswith("http/1.1 503") and json.loads(body)["status"] == "draining"


@pytest.mark.parametrize(
    ("options", "least"),
    [(("--drain=60", "--lame-duck=1"), 1.0), (("--drain=3", "--lame-duck=60"), 1.5), (("--drain=60",), 0.0)],
)
async def test_an_idle_connection_holds_the_end_only_so_long(
    package: Path, tmp_path: Path, options: tuple[str, ...], least: float
) -> None:
    async with running(package, tmp_path, *options) as made, connected(made) as connection:
        connection.send("/health/live", "GET")
        await connection.answer()
        began = time.monotonic()
        await begin_to_end(made)
        assert await connection.is_closed()
        assert time.monotonic() - began >= least
        assert await exit_code(made, 20) in (0, -signal.SIGTERM)


async def test_the_last_request_has_half_of_what_is_left(make_stack: Callable[..., Any]) -> None:
    async with make_stack(drain=100.0, lame_duck=80.0) as stack:
        stack.service.begin_drain()
        assert 49 < stack.service.patience() <= 50
    async with make_stack(drain=100.0, lame_duck=10.0) as stack:
        stack.service.begin_drain()
        assert stack.service.patience() == 10


async def test_a_request_after_the_drain_is_refused(make_stack: Callable[..., Any]) -> None:
    async with make_stack(drain=0.2, lame_duck=10.0) as stack:
        stack.service.begin_drain()
        await asyncio.sleep(0.3)
        status, headers, data = await stack.post(WHOLE, BODY)
        assert (status, json.loads(data)["error"]["code"]) == (503, "draining")
        assert headers["Connection"] == "close"
