"""The connection under a response: what is held goes out as one; a client that leaves is noticed."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy.direct import DirectProtocol
from proxy.logs import JsonFormatter
from tests.proxy.stack import MODEL, Stack
from tests.proxy.test_cancel import LONG, until

STREAM = "/api/v1/inference/stream"


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        if data:
            self.written.append(data)

    def is_closing(self) -> bool:
        return False


@pytest.fixture
def protocol() -> Iterator[DirectProtocol]:
    made = DirectProtocol.__new__(DirectProtocol)
    made.transport = Transport()  # type: ignore[assignment]
    yield made


def test_what_is_written_together_goes_out_as_one(protocol: DirectProtocol) -> None:
    with protocol.together():
        protocol.write(b"head\r\n")
        protocol.write_part(b"abc")
        assert protocol.transport.written == []  # type: ignore[attr-defined]
    protocol.write_part(b"d")
    assert protocol.transport.written == [b"head\r\n3\r\nabc\r\n", b"1\r\nd\r\n"]  # type: ignore[attr-defined]


def test_what_was_held_goes_out_after_a_failure_too(protocol: DirectProtocol) -> None:
    with pytest.raises(ValueError), protocol.together():
        protocol.write(b"head")
        raise ValueError
    assert protocol.transport.written == [b"head"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", [STREAM, "/api/v1/inference"])
async def test_a_client_that_leaves_after_a_large_body_is_noticed(stack: Stack, path: str) -> None:
    """uvicorn stops reading while a large body waits; the end of the connection must be read all the same."""
    stack.script(LONG, prefill=5.0)
    host, port = stack.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"modelId": MODEL, "prompt": "hi"}).encode() + b" " * 100_000
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {stack.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode())
    await asyncio.sleep(0.05)  # the request waits for its body, which comes in one piece
    writer.write(body)
    assert await until(lambda: bool(stack.triton.requests), 10.0)
    writer.close()
    assert await until(lambda: bool(stack.triton.stops) and not stack.service.active, 10.0)


async def test_a_client_that_leaves_after_an_early_status_line_is_no_failure(
    make_stack: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with make_stack(header_hold=0.05) as stack:
        stack.script(LONG, prefill=30.0)
        host, port = stack.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"modelId": MODEL, "prompt": "hi"}).encode()
        head = f"POST {STREAM} HTTP/1.1\r\nHost: x\r\nX-API-Key: {stack.key}\r\n"
        with caplog.at_level(logging.INFO, "proxy"):
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            assert await until(lambda: any(one.name == "proxy.access" for one in caplog.records), 10.0)
    assert [one.message for one in caplog.records if one.levelno >= logging.ERROR] == []
    [access] = [
        json.loads(JsonFormatter().format(one)) for one in caplog.records if one.name == "proxy.access"
    ]
    assert access["status"] == 499
