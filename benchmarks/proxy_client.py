"""The load of the proxy benchmark: raw sockets, one write a request, one parser, one regular expression."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import httptools
import numpy as np


@dataclass(frozen=True)
class Target:
    """Something that streams tokens; `token` finds them: its group is text, without a group it is one id."""

    name: str
    port: int
    path: str
    token: re.Pattern[bytes]
    key: str = ""

    def request(self, row: int, tokens: int) -> bytes:
        body = json.dumps(self._body(row, tokens)).encode()
        head = f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        if self.key:
            head += f"Authorization: Bearer {self.key}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def _body(self, row: int, tokens: int) -> dict[str, Any]:
        if self.path.endswith("/generate_stream"):
            ids = {"id": f"direct-{row}-{perf_counter()}", "input_ids": [1, 2, 3], "input_lengths": 3}
            return {**ids, "request_output_len": tokens, "seed": row, "streaming": True}
        if self.path.endswith("/chat/completions"):
            messages = [{"role": "user", "content": "abc"}]
            fields = {"max_tokens": tokens, "seed": row, "stream": True, "temperature": 1.0}
            return {"model": "m", "messages": messages, **fields}
        return {"modelId": "m", "prompt": "abc", "maxTokens": tokens, "seed": row, "temperature": 1.0}


@dataclass(frozen=True)
class Run:
    """What one run saw; times in seconds, arrays [streams, tokens], NaN where a token never came."""

    began: Any
    arrived: Any
    errors: int
    seconds: float

    @property
    def lost(self) -> int:
        return int(np.isnan(self.arrived).sum())


class Stream(asyncio.Protocol):
    """One connection that makes requests one after another."""

    def __init__(self, target: Target, rows: list[int], began: Any, arrived: Any) -> None:
        self._target = target
        self._rows = rows
        self._began = began
        self._arrived = arrived
        self._rest = b""
        self._count = 0
        self._row = -1
        self._now = 0.0
        self.failed = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter()
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        data = self._rest + body
        end = 0
        for match in self._target.token.finditer(data):
            end = match.end()
            tokens = len(match[1]) if match.re.groups else 1
            self._arrived[self._row, self._count : self._count + tokens] = self._now
            self._count += tokens
        self._rest = data[end:]

    def on_message_complete(self) -> None:
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.failed += 1 + len(self._rows)
            self.done.set_result(None)

    def _next(self) -> None:
        self._rest, self._count = b"", 0
        self._parser = httptools.HttpResponseParser(self)
        if not self._rows:
            if not self.done.done():
                self.done.set_result(None)
            self._transport.close()
            return
        self._row = self._rows.pop()
        self._began[self._row] = perf_counter()
        self._transport.write(self._target.request(self._row, self._arrived.shape[1]))


async def _connect(
    loop: asyncio.AbstractEventLoop, protocol: Callable[[], Stream], port: int
) -> tuple[asyncio.Transport, Stream]:
    return await loop.create_connection(protocol, "127.0.0.1", port)


async def load(target: Target, streams: int, requests: int, tokens: int, limit: float, ramp: float) -> Run:
    """`streams` connections that make `requests` requests in all, each of `tokens` tokens.

    The connections begin one after another over `ramp` seconds, as users do.
    """
    loop = asyncio.get_running_loop()
    began, arrived = np.full(requests, np.nan), np.full((requests, tokens), np.nan)
    rows = [list(range(first, requests, streams)) for first in range(streams)]
    start = perf_counter()
    made = []
    for index, own in enumerate(rows):
        await asyncio.sleep(max(0.0, start + ramp * index / streams - perf_counter()))
        made.append(await _connect(loop, partial(Stream, target, own, began, arrived), target.port))
    protocols = [protocol for _, protocol in made]
    await asyncio.wait([protocol.done for protocol in protocols], timeout=limit)
    seconds = perf_counter() - start
    for transport, _ in made:
        transport.abort()
    return Run(began, arrived, sum(protocol.failed for protocol in protocols), seconds)
