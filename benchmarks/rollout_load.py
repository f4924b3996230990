"""The clients of the rollout: short and long requests, streamed and whole, each checked to its last byte."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=300)
STREAM_PATH = "/api/v1/inference/stream"
WHOLE_PATH = "/api/v1/inference"
DONE = "[DONE]"
PROMPT = "Count from one to one hundred."


@dataclass(frozen=True)
class Shape:
    """One kind of request; it asks for exactly so many tokens."""

    tokens: int
    streamed: bool

    def body(self, model: str) -> dict[str, Any]:
        return {"modelId": model, "prompt": PROMPT, "maxTokens": self.tokens, "minTokens": self.tokens}


# Of 33 requests: 16 short whole ones, 12 short streams, 4 medium and 1 long one.
MIX = (
    *(Shape(3, streamed=False), Shape(4, streamed=True), Shape(3, streamed=False), Shape(4, streamed=True))
    * 6,
    *(Shape(3, streamed=False), Shape(16, streamed=True)) * 4,
    Shape(32, streamed=True),
)


@dataclass
class Outcome:
    """One request; times of one clock, in seconds. `problem` is empty when the whole answer came.

    A `held` one goes straight to a copy, to be running when the copy ends.
    """

    copy: str
    began: float
    held: bool = False
    ended: float = 0.0
    problem: str = ""
    first: asyncio.Event = field(default_factory=asyncio.Event)

    def spans(self, moment: float) -> bool:
        return self.began < moment < self.ended


class Load:
    """Users who ask again as soon as they have their answer, until told to stop."""

    def __init__(self, url: str, key: str, model: str) -> None:
        self._url = url
        self._headers = {"X-API-Key": key}
        self._model = model
        self._numbers = itertools.count()
        self._stopping = False
        self.outcomes: list[Outcome] = []

    async def user(self) -> None:
        async with aiohttp.ClientSession(headers=self._headers, timeout=TIMEOUT) as session:
            while not self._stopping:
                shape = MIX[next(self._numbers) % len(MIX)]
                await self.ask(session, self._url, shape, Outcome("", time.monotonic()))

    async def hold(self, url: str, tokens: int, outcome: Outcome) -> None:
        """One stream straight to a copy, for the time around its end."""
        async with aiohttp.ClientSession(headers=self._headers, timeout=TIMEOUT) as session:
            await self.ask(session, url, Shape(tokens, streamed=True), outcome)

    async def until(self, count: int) -> None:
        """Until so many requests have come to an end."""
        while len(self.outcomes) < count:
            await asyncio.sleep(0.05)

    def stop(self) -> None:
        """No new requests; those that run end."""
        self._stopping = True

    async def ask(self, session: aiohttp.ClientSession, url: str, shape: Shape, outcome: Outcome) -> None:
        path = STREAM_PATH if shape.streamed else WHOLE_PATH
        moment = "before any answer"
        try:
            async with session.post(url + path, json=shape.body(self._model)) as answer:
                moment = "in the middle"
                outcome.copy = answer.headers.get("X-Copy", outcome.copy)
                outcome.problem = await _problem(answer, shape, outcome.first)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            outcome.problem = f"{type(error).__name__} {moment}"
        outcome.ended = time.monotonic()
        outcome.first.set()
        self.outcomes.append(outcome)


async def _problem(answer: aiohttp.ClientResponse, shape: Shape, first: asyncio.Event) -> str:
    """Why an answer is not the whole one, or nothing."""
    if answer.status != 200:
        return f"status {answer.status}: {_code(await answer.text())}"
    if not shape.streamed:
        return _receipt_problem(await answer.json(), shape)
    events: list[str] = []
    async for line in answer.content:
        first.set()
        if line.startswith(b"data: "):
            events.append(line[len(b"data: ") :].decode().rstrip())
    if not events:
        return "an empty stream"
    if events[-1] != DONE:
        return f"a stream without an end: {_code(events[-1])}"
    return _receipt_problem(json.loads(events[-2]), shape)


def _receipt_problem(document: dict[str, Any], shape: Shape) -> str:
    tokens = document["usage"]["completionTokens"]
    whole = document["finishReason"] == "length" and tokens == shape.tokens
    return "" if whole else f"{tokens} tokens, {document['finishReason']}"


def _code(text: str) -> str:
    """The error code of an answer of the proxy; else its beginning, which is the balancer's."""
    try:
        return str(json.loads(text)["error"]["code"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return text[:80]
