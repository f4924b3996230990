"""CPU and delay of reading a token stream from tritonserver: the proxy's own client against aiohttp.

    python -m benchmarks.upstream --streams 64

Both read the same paced source (benchmarks/proxy_source.py), in turns; CPU is this process's, for each token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import numpy as np
import orjson
import uvloop

from benchmarks.proxy import set_pace
from benchmarks.proxy_targets import start_source
from proxy.upstream import Pool

PATH = "/v2/models/m-tensorrt_llm/generate_stream"
Read = Callable[[int, int, int], Awaitable[int]]


def body(row: int, tokens: int) -> bytes:
    ids = {"id": f"r{row}", "input_ids": [1], "input_lengths": 1, "request_output_len": tokens}
    return json.dumps({**ids, "seed": row, "streaming": True}).encode()


def count(data: bytes) -> int:
    """Parse the whole events in `data` as the proxy does; their number."""
    events = data.split(b"\n\n")[:-1]
    return sum(1 for event in events if orjson.loads(event[6:])["output_ids"] is not None)


async def read_own(port: int, streams: int, tokens: int) -> int:
    pool = Pool(f"http://127.0.0.1:{port}")

    async def one(row: int) -> int:
        exchange = await pool.open("POST", PATH, body(row, tokens))
        seen = 0
        while data := await exchange.read():
            seen += count(data)
        return seen

    seen = sum(await asyncio.gather(*(one(row) for row in range(streams))))
    await pool.close()
    return seen


async def read_aiohttp(port: int, streams: int, tokens: int) -> int:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(row: int) -> int:
            url = f"http://127.0.0.1:{port}{PATH}"
            seen = 0
            async with session.post(url, data=body(row, tokens)) as answer:
                async for data in answer.content.iter_any():
                    seen += count(data)
            return seen

        return sum(await asyncio.gather(*(one(row) for row in range(streams))))


READERS: dict[str, Read] = {"own": read_own, "aiohttp": read_aiohttp}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cpu: dict[str, float] = dict.fromkeys(READERS, 0.0)
    seen: dict[str, int] = dict.fromkeys(READERS, 0)
    with tempfile.TemporaryDirectory() as name:
        shape = (options.streams, options.tokens)
        np.memmap(Path(name) / "times", dtype=np.float64, mode="w+", shape=shape)
        with start_source(Path(name), shape) as source:
            set_pace(source.target.port, 1 / options.rate)
            for _ in range(options.rounds):
                for reader, read in READERS.items():
                    began = time.process_time()
                    work = read(source.target.port, options.streams, options.tokens)
                    seen[reader] += uvloop.run(_finish(work))
                    cpu[reader] += time.process_time() - began
    for reader in READERS:
        print(f"{reader:8} {1e6 * cpu[reader] / seen[reader]:6.1f} us CPU a token, {seen[reader]} tokens")


async def _finish(work: Awaitable[int]) -> int:
    return await work


if __name__ == "__main__":
    main()
