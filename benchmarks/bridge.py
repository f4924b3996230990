"""Tokens and responses a second through Triton's `tensorrt_llm` model, for several numbers of streams.

    python benchmarks/bridge.py --url http://127.0.0.1:8000 --model M-tensorrt_llm --at-once 1 8 16

Every request has a prompt of its own, so that the prefix cache helps none, and makes exactly --tokens tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import aiohttp


@dataclass(frozen=True)
class Result:
    """One round: all requests sent together. Times in ms, rates a second over all requests."""

    at_once: int
    tokens_per_second: float
    responses_per_second: float
    first_token_ms: float
    tokens_per_response: float


@dataclass(frozen=True)
class Stream:
    """One request: tokens and responses that came, seconds to the first."""

    tokens: int
    responses: int
    first_token_s: float


async def run_stream(session: aiohttp.ClientSession, url: str, prompt: list[int], tokens: int) -> Stream:
    body = {
        "input_ids": prompt,
        "input_lengths": len(prompt),
        "request_output_len": tokens,
        "streaming": True,
    }
    started, first, count, responses = time.perf_counter(), 0.0, 0, 0
    async with session.post(url, json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            if "error" in event:
                raise RuntimeError(event["error"])
            first = first or time.perf_counter() - started
            count += event["sequence_length"]
            responses += 1
    return Stream(count, responses, first)


async def run_round(url: str, at_once: int, prompt_len: int, tokens: int, vocab_size: int) -> Result:
    prompts = [[random.randrange(vocab_size) for _ in range(prompt_len)] for _ in range(at_once)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.perf_counter()
        streams = await asyncio.gather(*(run_stream(session, url, prompt, tokens) for prompt in prompts))
        elapsed = time.perf_counter() - started
    made, responses = sum(s.tokens for s in streams), sum(s.responses for s in streams)
    return Result(
        at_once,
        round(made / elapsed, 1),
        round(responses / elapsed, 1),
        round(1000 * statistics.median(s.first_token_s for s in streams), 1),
        round(made / responses, 2),
    )


async def main(options: argparse.Namespace) -> None:
    url = f"{options.url}/v2/models/{options.model}/generate_stream"
    for at_once in options.at_once:
        results = [
            await run_round(url, at_once, options.prompt_len, options.tokens, options.vocab_size)
            for _ in range(options.rounds)
        ]
        median = sorted(results, key=lambda result: result.tokens_per_second)[len(results) // 2]
        sys.stdout.write(json.dumps(asdict(median)) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt-len", type=int, default=38)
    parser.add_argument("--vocab-size", type=int, default=256, help="prompt ids are drawn below this")
    parser.add_argument("--rounds", type=int, default=3)
    asyncio.run(main(parser.parse_args()))
