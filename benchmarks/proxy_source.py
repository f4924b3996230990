"""A token source at C speed: uvloop, answers rendered once, one timer for all paced streams.

Speaks Triton's generate_stream and OpenAI's chat stream. Every token is the same id, so that clients can
count tokens in any framing; the time of each write goes to a shared array, row `seed`, column token number.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import uvloop

TOKEN_ID = 7
TICK_SECONDS = 0.001
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
INDEX = [{"name": "m-tensorrt_llm", "version": "1", "state": "READY"}]
MODEL_CONFIG = {"model_transaction_policy": {"decoupled": True}}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Source(asyncio.Protocol):
    """One connection. POST /pace sets the seconds between tokens of all later answers; 0 is all at once."""

    pace = 0.0

    def __init__(self, times: Any, streams: set[Source]) -> None:
        self._times = times
        self._streams = streams
        self._buffer = b""
        self._event = b""
        self._end = b""
        self._row = self._count = self._sent = 0
        self._next = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._streams.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end]
        length = LENGTH.search(head)
        size = int(length[1]) if length else 0
        if len(self._buffer) >= end + 4 + size:
            body = self._buffer[end + 4 : end + 4 + size]
            self._buffer = self._buffer[end + 4 + size :]
            self._answer(head.split(b" ", 2)[1].decode(), body)

    def _answer(self, path: str, body: bytes) -> None:
        if path.endswith("/generate_stream"):
            request = json.loads(body)
            self._begin(request["seed"], request["request_output_len"], _triton_event(request["id"]), b"")
        elif path.endswith("/chat/completions"):
            request = json.loads(body)
            self._begin(request["seed"], request["max_tokens"], _openai_event(), _openai_end())
        else:
            if path == "/pace":
                Source.pace = json.loads(body)
            answer = INDEX if path.endswith("/index") else MODEL_CONFIG
            document = json.dumps(answer).encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(document), document)
            )

    def _begin(self, row: int, count: int, event: bytes, end: bytes) -> None:
        self._row, self._count, self._sent = row, count, 0
        self._event, self._end = chunk(event), end + LAST_CHUNK
        self._transport.write(HEAD)
        if Source.pace:
            self._next = perf_counter()
            self._streams.add(self)
            self.tick(self._next)
        else:
            self._times[row, :count] = perf_counter()
            self._transport.write(self._event * count + self._end)

    def tick(self, now: float) -> None:
        """Write the token that is due, if one is."""
        if now < self._next:
            return
        self._times[self._row, self._sent] = perf_counter()
        self._sent += 1
        self._next += Source.pace
        last = self._sent == self._count
        self._transport.write(self._event + self._end if last else self._event)
        if last:
            self._streams.discard(self)


def _triton_event(request_id: str) -> bytes:
    document = {
        "id": request_id,
        "model_name": "m-tensorrt_llm",
        "model_version": "1",
        "output_ids": TOKEN_ID,
        "sequence_length": 1,
    }
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def _openai_event() -> bytes:
    return _openai_chunk({"content": "a"}, None)


def _openai_end() -> bytes:
    return chunk(_openai_chunk({}, "length")) + chunk(b"data: [DONE]\n\n")


def _openai_chunk(delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    document = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "m",
        "choices": [choice],
    }
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


async def serve(port: int, times: Path, shape: tuple[int, int]) -> None:
    loop = asyncio.get_running_loop()
    shared = np.memmap(times, dtype=np.float64, mode="r+", shape=shape)
    streams: set[Source] = set()
    await loop.create_server(lambda: Source(shared, streams), "127.0.0.1", port, backlog=4096)
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = perf_counter()
        for stream in tuple(streams):
            stream.tick(now)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--times", type=Path, required=True)
    parser.add_argument("--shape", type=int, nargs=2, required=True)
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.times, tuple(options.shape)))


if __name__ == "__main__":
    main()
