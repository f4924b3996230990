"""Many streams at once over HTTP, from processes of their own: the load of the GPU benchmark.

Raw sockets and one regular expression a packet: a client slower than the server would measure itself.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

# For each stream the bodies of its requests, one after the other.
Plan = Sequence[Sequence[dict[str, Any]]]

END = b"0\r\n\r\n"
KEEP_BYTES = 4096


@dataclass(frozen=True)
class Endpoint:
    """What is asked. `tokens` matches one event: its group is a list of ids; without a group it is text."""

    port: int
    path: str
    event: str
    headers: dict[str, str]

    def request(self, body: dict[str, Any]) -> bytes:
        payload = json.dumps(body).encode()
        fields = {"Host": "localhost", "Content-Type": "application/json", **self.headers}
        fields["Content-Length"] = str(len(payload))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.path} HTTP/1.1\r\n{head}\r\n".encode() + payload


@dataclass
class Seen:
    """One request: when it began and when each event came, in seconds of one clock, and its tokens."""

    began: float
    arrivals: list[float]
    tokens: int = 0
    error: str = ""


class Stream(asyncio.Protocol):
    """One connection that makes its requests one after the other."""

    def __init__(
        self, requests: list[bytes], event: re.Pattern[bytes], done: asyncio.Future[list[Seen]]
    ) -> None:
        self._requests = requests
        self._event = event
        self._done = done
        self._rest = b""
        self._all: list[Seen] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._next()

    def _next(self) -> None:
        if not self._requests:
            self._done.set_result(self._all)
            self._transport.close()
            return
        self._rest = b""
        self._seen = Seen(time.monotonic(), [])
        self._all.append(self._seen)
        self._transport.write(self._requests.pop(0))

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        data = self._rest + data
        end = 0
        for match in self._event.finditer(data):
            end = match.end()
            self._seen.arrivals.append(now)
            self._seen.tokens += match[1].count(b",") + 1 if match.re.groups else 0
        self._rest = data[end:]
        if self._rest.endswith(END):
            self._finish(self._rest)
        self._rest = self._rest[-KEEP_BYTES:]

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._seen.error = f"connection lost: {self._rest[-300:]!r}"
            self._done.set_result(self._all)

    def _finish(self, tail: bytes) -> None:
        usage = re.search(rb'"completionTokens":(\d+)', tail)
        if usage:
            self._seen.tokens = int(usage[1])
        if not self._seen.arrivals or b'"error"' in tail:
            self._seen.error = tail[-300:].decode("utf-8", "replace")
        self._next()


async def _run(endpoint: Endpoint, plan: Plan, limit: float) -> list[Seen]:
    loop = asyncio.get_running_loop()
    event = re.compile(endpoint.event.encode())
    futures = []
    for bodies in plan:
        done: asyncio.Future[list[Seen]] = loop.create_future()
        protocol = partial(Stream, [endpoint.request(body) for body in bodies], event, done)
        await loop.create_connection(protocol, "127.0.0.1", endpoint.port)
        futures.append(done)
    seen = await asyncio.wait_for(asyncio.gather(*futures), limit)
    return [one for stream in seen for one in stream]


def _process(endpoint: Endpoint, plan: Plan, limit: float, start: float) -> list[Seen]:
    time.sleep(max(start - time.time(), 0))
    return asyncio.run(_run(endpoint, plan, limit))


@dataclass(frozen=True)
class Figures:
    """Of one round. Times in ms; ITL is a stream's mean time a token, gap the time between two events."""

    streams: int
    tokens_per_second: float
    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float
    gap_p99: float
    tokens_per_event: float
    errors: int

    def as_dict(self) -> dict[str, Any]:
        return {key: round(value, 3) for key, value in asdict(self).items()}


def summarize(seen: Sequence[Seen], streams: int) -> Figures:
    """Throughput counts all tokens over the time from the first request to the last token."""
    good = [one for one in seen if not one.error and one.tokens > 1]
    if not good:
        raise RuntimeError(f"no stream succeeded: {seen[0].error if seen else 'none was made'}")
    seconds = max(one.arrivals[-1] for one in good) - min(one.began for one in good)
    ttft = np.array([one.arrivals[0] - one.began for one in good]) * 1e3
    itl = np.array([(one.arrivals[-1] - one.arrivals[0]) / (one.tokens - 1) for one in good]) * 1e3
    gaps = np.concatenate([np.diff(one.arrivals) for one in good]) * 1e3
    events = sum(len(one.arrivals) for one in good)
    tokens = sum(one.tokens for one in good)
    return Figures(
        streams=streams,
        tokens_per_second=tokens / seconds,
        ttft_p50=float(np.percentile(ttft, 50)),
        ttft_p99=float(np.percentile(ttft, 99)),
        itl_p50=float(np.percentile(itl, 50)),
        itl_p99=float(np.percentile(itl, 99)),
        gap_p99=float(np.percentile(gaps, 99)) if len(gaps) else 0.0,
        tokens_per_event=tokens / events,
        errors=len(seen) - len(good),
    )


def median_round(rounds: Sequence[Figures]) -> dict[str, Any]:
    """The figures of the round with the median throughput, and the throughput of all."""
    ordered = sorted(rounds, key=lambda figures: figures.tokens_per_second)
    spread = [round(figures.tokens_per_second) for figures in rounds]
    return {**ordered[(len(ordered) - 1) // 2].as_dict(), "rounds": spread}


def load(endpoint: Endpoint, plan: Plan, *, processes: int = 2, limit: float = 300.0) -> Figures:
    """Run every stream of `plan` at once, shared among `processes`; returns what the streams saw."""
    count = min(processes, len(plan))
    shares = [plan[index::count] for index in range(count)]
    start = time.time() + 1.0  # all processes are up by then
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        results = pool.starmap(_process, [(endpoint, share, limit, start) for share in shares])
    return summarize([one for result in results for one in result], len(plan))
