"""The HTTP client for tritonserver against servers that do not speak HTTP as they should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.upstream import ConnectionLost, Pool


@asynccontextmanager
async def server_that_answers(data: bytes) -> AsyncIterator[Pool]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    pool = Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield pool
    finally:
        await pool.close()
        server.close()


async def test_an_answer_in_chunks_is_read_whole() -> None:
    chunks = b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"
    async with server_that_answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks) as pool:
        assert await pool.request("GET", "/") == (200, b"abcde")


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz"]
)
async def test_what_is_not_http_is_a_lost_connection_at_once(garbage: bytes) -> None:
    async with server_that_answers(garbage) as pool:
        exchange = await pool.open("GET", "/")
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(exchange.read(), 5)
