"""One question to a served model, and the receipt of its answer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from common.errors import EngineError
from runtime import client
from runtime.client import Endpoint

CAPITAL = re.compile("[A-Z]")


@dataclass(frozen=True)
class Answer:
    """An answer and its receipt. Times in seconds, measured at the client; `ttft` is 0 when not streamed."""

    text: str
    finish_reason: str
    usage: dict[str, Any]
    timings: dict[str, Any]
    seconds: float
    ttft: float = 0.0

    @property
    def tokens(self) -> int:
        return int(self.usage.get("completionTokens", 0))

    @property
    def tokens_per_second(self) -> float:
        """Of a stream, after its first token; else of the whole request."""
        rest, tokens = self.seconds - self.ttft, self.tokens - (1 if self.ttft else 0)
        return tokens / rest if tokens > 0 and rest > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": snake_case(self.usage),
            "timings": snake_case(self.timings),
            "ttft_ms": round(self.ttft * 1000, 1) or None,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
        }

    def receipt(self) -> str:
        """One line for people."""
        parts = [f"{self.usage.get('promptTokens', 0)} + {self.tokens} tokens"]
        if self.ttft:
            parts.append(f"first after {self.ttft * 1000:.0f} ms")
        added = self.timings.get("proxyMs")
        parts += [f"{self.tokens_per_second:.1f} tokens/s", f"{self.seconds:.2f} s", self.finish_reason]
        return ", ".join([*parts, *([f"proxy {added:.1f} ms"] if added is not None else [])])


def snake_case(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of the HTTP API as the command line names them: promptTokens -> prompt_tokens."""
    return {
        CAPITAL.sub(lambda letter: f"_{letter[0].lower()}", name): (
            snake_case(value) if isinstance(value, dict) else value
        )
        for name, value in fields.items()
    }


def ask_streaming(endpoint: Endpoint, body: dict[str, Any], show: Callable[[str], None]) -> Answer:
    """Stream an answer; `show` gets each piece of text as it comes.

    Raises:
        ServiceError, EngineError: as `client.stream`.
    """
    began = time.monotonic()
    texts: list[str] = []
    ttft, last = 0.0, {}
    with closing(client.stream(endpoint, body)) as events:
        for last in events:
            if last["text"]:
                ttft = ttft or time.monotonic() - began
                texts.append(last["text"])
                show(last["text"])
    return _answer({**last, "text": "".join(texts)}, time.monotonic() - began, ttft)


def ask_whole(endpoint: Endpoint, body: dict[str, Any]) -> Answer:
    """The answer in one piece."""
    began = time.monotonic()
    return _answer(client.complete(endpoint, body), time.monotonic() - began, 0.0)


def _answer(event: dict[str, Any], seconds: float, ttft: float) -> Answer:
    if "finishReason" not in event:
        raise EngineError("The answer came without its receipt.", hint="Look with ./ew logs proxy.")
    return Answer(
        event["text"], event["finishReason"], event.get("usage", {}), event.get("timings", {}), seconds, ttft
    )
