"""Load on a running service: closed loops of streaming requests, measured at the client.

Every request has its own prompt of random words, so that no prefix is shared, and asks for exactly the output
length. A level of concurrency c runs c loops until its requests are done.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from common.errors import ServiceError
from runtime.client import DONE, PATH, Endpoint

VOCABULARY = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room
mother area money story fact month lot right study book eye job word business issue side kind head house
"""
WORDS = VOCABULARY.split()
TIMEOUT_SECONDS = 600.0
SHOWN_ERRORS = 3
Progress = Callable[[str], None]


@dataclass(frozen=True)
class LoadRequest:
    """`requests` a level is at least `per_loop` times its concurrency; lengths in tokens."""

    model: str
    concurrency: tuple[int, ...] = (1, 8, 32)
    input_len: int = 128
    output_len: int = 64
    per_loop: int = 2
    least: int = 8
    seed: int = 0

    def count(self, concurrency: int) -> int:
        return max(self.least, self.per_loop * concurrency)


@dataclass
class Timing:
    """One request: seconds from its start. `gaps` are the pauses between pieces of text."""

    ttft: float = 0.0
    seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    error: str = ""


@dataclass(frozen=True)
class Level:
    """One level of concurrency. Times in milliseconds, rates per second; percentiles are None without data.

    ITL is the pause between pieces of text as they arrive, TPOT the mean time per token after the first.
    """

    concurrency: int
    requests: int
    failed: int
    seconds: float
    input_tokens: float
    output_tokens: float
    requests_per_second: float
    tokens_per_second: float
    ttft_p50: float | None
    ttft_p99: float | None
    itl_p50: float | None
    itl_p99: float | None
    tpot_mean: float | None
    errors: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "errors": list(self.errors)}


OnLevel = Callable[[Level], None]


def run(
    endpoint: Endpoint,
    request: LoadRequest,
    progress: Progress = lambda text: None,
    on_level: OnLevel = lambda level: None,
) -> list[Level]:
    """Measure every level, lowest first, after one request that is not counted.

    Args:
        on_level: called with each level when it is measured, so that an interrupt loses none.

    Raises:
        ServiceError: that first request failed.
    """
    return asyncio.run(_run(endpoint, request, progress, on_level))


async def _run(
    endpoint: Endpoint, request: LoadRequest, progress: Progress, on_level: OnLevel
) -> list[Level]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        words = await _words_for(session, endpoint, request)
        levels = []
        for concurrency in sorted(set(request.concurrency)):
            progress(f"{concurrency} at once, {request.count(concurrency)} requests ...")
            levels.append(await _level(session, endpoint, request, concurrency, words))
            on_level(levels[-1])
        return levels


async def _words_for(session: aiohttp.ClientSession, endpoint: Endpoint, request: LoadRequest) -> int:
    """How many words make `input_len` tokens with this model's tokenizer; also warms the service up."""
    words = max(1, request.input_len)
    for _ in range(3):
        probe = await _one(session, endpoint, _body(request, _prompt(random.Random(request.seed), words), 1))
        if probe.error:
            raise ServiceError(
                "The first request failed.", why=probe.error, hint="./ew status", code="bench_failed"
            )
        if probe.input_tokens in (0, request.input_len):
            break
        words = max(1, round(words * request.input_len / probe.input_tokens))
    return words


async def _level(
    session: aiohttp.ClientSession, endpoint: Endpoint, request: LoadRequest, concurrency: int, words: int
) -> Level:
    chance = random.Random(f"{request.seed} {concurrency}")
    prompts = iter([_prompt(chance, words) for _ in range(request.count(concurrency))])
    timings: list[Timing] = []

    async def loop() -> None:
        for prompt in prompts:
            timings.append(await _one(session, endpoint, _body(request, prompt, request.output_len)))

    began = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(concurrency)))
    return summarise(concurrency, timings, time.perf_counter() - began)


async def _one(session: aiohttp.ClientSession, endpoint: Endpoint, body: dict[str, Any]) -> Timing:
    """One streamed request; what goes wrong is noted, not raised."""
    timing, began = Timing(), time.perf_counter()
    try:
        async with session.post(endpoint.url + PATH, json=body, headers=endpoint.headers()) as response:
            if response.status != 200:
                timing.error = f"HTTP {response.status}: {_told(await response.text())}"
                return timing
            await _follow(_events(response), timing, began)
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        timing.error = f"{type(error).__name__}: {error}"
    timing.seconds = time.perf_counter() - began
    return timing


def _told(text: str) -> str:
    """What the body of a refusal says to people."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]


async def _follow(events: AsyncIterator[str], timing: Timing, began: float) -> None:
    last = 0.0
    async for data in events:
        now = time.perf_counter()
        if data == DONE:
            return
        event = json.loads(data)
        if "error" in event:
            break
        if event.get("text"):
            if last:
                timing.gaps.append(now - last)
            else:
                timing.ttft = now - began
            last = now
        usage = event.get("usage", {})
        timing.input_tokens = usage.get("promptTokens", timing.input_tokens)
        timing.output_tokens = usage.get("completionTokens", timing.output_tokens)
    timing.error = "the stream ended without [DONE]"


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in response.content:
        if line.startswith(b"data:"):
            yield line[5:].decode().strip()


def summarise(concurrency: int, timings: Sequence[Timing], seconds: float) -> Level:
    """A level's figures from its requests; failed ones count in nothing but `failed`."""
    good = [timing for timing in timings if not timing.error]
    tokens = sum(timing.output_tokens for timing in good)
    ttfts = [timing.ttft for timing in good if timing.ttft]
    gaps = [gap for timing in good for gap in timing.gaps]
    after = [(t.seconds - t.ttft) / (t.output_tokens - 1) for t in good if t.ttft and t.output_tokens > 1]
    return Level(
        concurrency=concurrency,
        requests=len(timings),
        failed=len(timings) - len(good),
        seconds=round(seconds, 3),
        input_tokens=_mean([timing.input_tokens for timing in good]),
        output_tokens=_mean([timing.output_tokens for timing in good]),
        requests_per_second=round(len(good) / seconds, 3),
        tokens_per_second=round(tokens / seconds, 1),
        ttft_p50=_milliseconds(percentile(ttfts, 50)),
        ttft_p99=_milliseconds(percentile(ttfts, 99)),
        itl_p50=_milliseconds(percentile(gaps, 50)),
        itl_p99=_milliseconds(percentile(gaps, 99)),
        tpot_mean=_milliseconds(sum(after) / len(after) if after else None),
        errors=tuple(dict.fromkeys(timing.error for timing in timings if timing.error))[:SHOWN_ERRORS],
    )


def percentile(values: Sequence[float], rank: float) -> float | None:
    """Linear between the two nearest values; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * rank / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _prompt(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def _body(request: LoadRequest, prompt: str, output_len: int) -> dict[str, Any]:
    return {
        "modelId": request.model,
        "prompt": prompt,
        "raw": True,
        "maxTokens": output_len,
        "minTokens": output_len,
        "temperature": 0,
    }


def _mean(values: Sequence[int]) -> float:
    return round(sum(values) / len(values), 1) if values else 0.0


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
