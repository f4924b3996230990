"""What the programs of the bare engines share: their command line, their load, the line they end with.

python -m benchmarks.ENGINE_bare --model DIR --streams 1 16 --prompt-len 128 --new-tokens 256
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from benchmarks.streams import Figures, Seen, median_round, summarize


class News(NamedTuple):
    """What a step brought one request."""

    name: str
    new_tokens: int
    ended: bool


class BareEngine(Protocol):
    """An engine in its own process, without anything of ours around it."""

    def add(self, name: str, prompt: list[int]) -> None:
        """Begin a request of the asked number of tokens, greedy, without an end token."""

    def step(self) -> Iterable[News]:
        """Compute, or wait for, the next tokens."""

    def close(self) -> None:
        """End what would outlive this program."""


def run_round(engine: BareEngine, streams: int, requests: int, prompt_len: int, seed: int) -> Figures:
    """Keep `streams` requests running until `requests` of each are answered. Every prompt is different."""
    source = random.Random(seed)
    seen: dict[str, Seen] = {}
    running = 0

    def begin() -> None:
        name = f"{seed}-{len(seen)}"
        seen[name] = Seen(time.monotonic(), [])
        engine.add(name, [source.randrange(10, 250) for _ in range(prompt_len)])

    for _ in range(streams):
        begin()
        running += 1
    while running:
        news = engine.step()
        now = time.monotonic()
        for name, new_tokens, ended in news:
            seen[name].arrivals.append(now)
            seen[name].tokens += new_tokens
            if ended and len(seen) < streams * requests:
                begin()
            elif ended:
                running -= 1
    return summarize(list(seen.values()), streams)


def main(start: Callable[[argparse.Namespace], BareEngine]) -> None:
    """Measure the engine that `start` makes; `RESULT [...]` is the last line."""
    options = _parse()
    engine = start(options)
    results, seed = [], 0
    for streams in options.streams:
        run_round(engine, streams, 1, options.prompt_len, seed)
        rounds = [
            run_round(engine, streams, options.requests, options.prompt_len, seed + turn)
            for turn in range(1, options.rounds + 1)
        ]
        results.append(median_round(rounds))
        seed += options.rounds + 1
    engine.close()
    sys.stdout.write("\nRESULT " + json.dumps(results) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--model", required=True, help="a Hugging Face checkpoint; a package for the cpu engine"
    )
    parser.add_argument("--streams", type=int, nargs="+", required=True)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--requests", type=int, default=3, help="of each stream, one after the other")
    parser.add_argument("--rounds", type=int, default=1, help="of which the median is told")
    parser.add_argument("--max-batch-size", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tp-size", type=int, default=1)
    return parser.parse_args()
