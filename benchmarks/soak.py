"""Load on a running service for as long as asked: memory, file descriptors and errors over time.

    python -m benchmarks.soak --url http://127.0.0.1:8080 --key-file run/api_key --pid PROXY_PID --minutes 60

Half of the requests leave in the middle, as users do. Ends with 1 when memory or descriptors kept growing,
or an answer was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

SETTLE_SHARE = 0.2  # of the run: caches fill before growth counts
GROWTH_ALLOWED = 0.10


@dataclass
class Counts:
    """What the requests came to."""

    whole: int = 0
    left: int = 0
    refused: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def fail(self, reason: str) -> None:
        self.errors[reason] = self.errors.get(reason, 0) + 1


@dataclass(frozen=True)
class Sample:
    """The proxy and all its workers at one moment; memory in bytes."""

    seconds: float
    rss: int
    descriptors: int


async def user(options: argparse.Namespace, counts: Counts, deadline: float) -> None:
    headers = {"X-API-Key": options.key_file.read_text().strip()}
    async with aiohttp.ClientSession(headers=headers) as session:
        while time.monotonic() < deadline:
            await one_request(session, options, counts)


async def one_request(session: aiohttp.ClientSession, options: argparse.Namespace, counts: Counts) -> None:
    leaves = random.random() < 0.5
    body = {"modelId": options.model, "prompt": f"Count to {random.randrange(99)}.", "maxTokens": 48}
    try:
        async with session.post(f"{options.url}/api/v1/inference/stream", json=body) as answer:
            if answer.status in (429, 503):
                counts.refused += 1
                await asyncio.sleep(1)
                return
            answer.raise_for_status()
            if leaves:
                await answer.content.readany()
                answer.close()
                counts.left += 1
                return
            data = await answer.read()
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        counts.fail(type(error).__name__)
        await asyncio.sleep(0.1)
        return
    if data.endswith(b"data: [DONE]\n\n"):
        counts.whole += 1
    else:
        counts.fail("no [DONE]")


async def sample(options: argparse.Namespace, samples: list[Sample], counts: Counts, began: float) -> None:
    root = psutil.Process(options.pid)
    while True:
        processes = [root, *root.children(recursive=True)]
        now = Sample(
            time.monotonic() - began,
            sum(process.memory_info().rss for process in processes),
            sum(process.num_fds() for process in processes),
        )
        samples.append(now)
        print(
            f"{now.seconds:7.0f} s  {now.rss / 2**20:7.1f} MiB  {now.descriptors:5d} descriptors"
            f"  {counts.whole} whole, {counts.left} left, {counts.refused} refused,"
            f" {sum(counts.errors.values())} errors",
            flush=True,
        )
        await asyncio.sleep(options.every)


async def soak(options: argparse.Namespace) -> int:
    counts, samples = Counts(), list[Sample]()
    began = time.monotonic()
    deadline = began + 60 * options.minutes
    watcher = asyncio.ensure_future(sample(options, samples, counts, began))
    await asyncio.gather(*(user(options, counts, deadline) for _ in range(options.users)))
    watcher.cancel()
    problems = [*growth(samples), *(f"{count} x {reason}" for reason, count in counts.errors.items())]
    print(json.dumps({"whole": counts.whole, "left": counts.left, "problems": problems}))
    return 1 if problems else 0


def growth(samples: list[Sample]) -> list[str]:
    """What grew by more than a tenth between the settled beginning and the end, over a few samples each."""
    settled = [one for one in samples if one.seconds >= SETTLE_SHARE * samples[-1].seconds]
    size = max(1, len(settled) // 5)
    problems = []
    for name in ("rss", "descriptors"):
        first = sum(getattr(one, name) for one in settled[:size]) / size
        last = sum(getattr(one, name) for one in settled[-size:]) / size
        if last > first * (1 + GROWTH_ALLOWED):
            problems.append(f"{name} grew from {first:.0f} to {last:.0f}")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key-file", type=Path, default=Path("run/api_key"))
    parser.add_argument("--model", default="smollm2-135m-trt")
    parser.add_argument("--pid", type=int, required=True, help="of the proxy")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two lines")
    sys.exit(asyncio.run(soak(parser.parse_args())))


if __name__ == "__main__":
    main()
