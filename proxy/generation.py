"""One running request: token ids in, text out, an honest end."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from common.detokenize import IncrementalDecoder
from proxy.chunks import StreamTraits
from proxy.engine_request import EngineRequest, Sampling
from proxy.models import ServedModel
from proxy.stops import StopMatcher
from proxy.triton import TokenStream, TritonClient
from proxy.upstream import ConnectionLost

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]
Cause = Literal["client_gone", "timeout", "draining", "sibling_failed"]


@dataclass(frozen=True)
class GenerationRequest:
    """A validated request. `max_tokens` is what the model may generate; `timeout` is in seconds."""

    model: ServedModel
    engine_id: str
    prompt_ids: list[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    timeout: float | None = None
    priority: int | None = None
    trace_headers: bytes = b""
    show_special: bool = False
    streaming: bool = True

    def for_engine(self) -> EngineRequest:
        return EngineRequest(
            model_id=self.model.model_id,
            request_id=self.engine_id,
            prompt_ids=self.prompt_ids,
            max_tokens=self.max_tokens,
            end_ids=self.model.end_ids,
            pad_id=self.model.pad_id,
            sampling=self.sampling,
            priority=self.priority,
            streaming=self.streaming,
        )


@dataclass
class Timings:
    """Stamps of perf_counter, in seconds; `answers` are those of the engine's answers with tokens.

    `added` is a duration.
    """

    arrived: float
    sent: float = 0.0
    added: float = 0.0
    answers: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Of the first answer; 0 before."""
        return self.answers[0] if self.answers else 0.0

    @property
    def last(self) -> float:
        """Of the latest answer; 0 before."""
        return self.answers[-1] if self.answers else 0.0

    def intervals(self) -> list[float]:
        """The gaps between the answers, sorted."""
        return sorted(map(operator.sub, self.answers[1:], self.answers))

    def receipt(self) -> dict[str, float | None]:
        """Milliseconds as the last event shows them."""
        now = perf_counter()
        intervals = self.intervals()
        return {
            "queueMs": _ms(self.sent - self.arrived) if self.sent else None,
            "ttftMs": _ms(self.first - self.arrived) if self.first else None,
            "itlMeanMs": _ms(sum(intervals) / len(intervals)) if intervals else None,
            "itlP99Ms": _ms(intervals[int(len(intervals) * 0.99)]) if intervals else None,
            "totalMs": _ms(now - self.arrived),
            "proxyMs": _ms(self.added),
        }


class Generation:
    """Iterate `texts()` once; then `finish_reason`, `completion_tokens` and `timings` are final.

    Or, without a task that waits: `first_text()`, then `take_text()` whenever a listener is called, until
    `ended`, then `close()`.

    `token_ids` are kept where log probabilities were asked for. `on_answer` is called at the first tokens.
    """

    def __init__(
        self,
        client: TritonClient,
        request: GenerationRequest,
        arrived: float,
        traits: StreamTraits,
        on_answer: Callable[[], None] | None = None,
    ) -> None:
        self.request = request
        self.pseudo = not request.streaming
        self.timings = Timings(arrived)
        self.completion_tokens = 0
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason = "error"
        self.ended = False
        self.stop_reason: str | None = None
        self._client = client
        self._traits = traits
        self._on_answer = on_answer
        texts = request.model.special_texts if request.show_special else request.model.texts
        self._decoder = IncrementalDecoder(texts)
        self._stops = StopMatcher(request.stop) if request.stop else None
        self._end_ids = frozenset(request.model.end_ids)
        self._stream = self._new_stream()
        self.cause: Cause | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def received_at(self) -> float:
        """When the tokens of the latest text arrived here (perf_counter)."""
        return self._stream.received_at

    @property
    def log_probs(self) -> list[float]:
        return self._stream.log_probs

    def usage(self) -> dict[str, int]:
        prompt = len(self.request.prompt_ids)
        return {
            "promptTokens": prompt,
            "completionTokens": self.completion_tokens,
            "totalTokens": prompt + self.completion_tokens,
        }

    def cancel(self, cause: Cause) -> None:
        """Stop the engine's work now; `texts()` ends. Too late, it does nothing."""
        if self.cause is None and self.finish_reason == "error":
            self.cause = cause
            self._stream.cancel()

    async def texts(self) -> AsyncGenerator[str, None]:
        """Text as it is completed, never empty; character by character where it was there at once.

        Raises:
            EngineError, ServiceError: the engine failed; what came before is incomplete.
        """
        try:
            text = await self.first_text()
            while True:
                for piece in self.pieces(text):
                    yield piece
                if self.ended:
                    break
                if not self._stream.ready():
                    await self._stream.change()
                text = self.take_text()
        finally:
            self.close()

    def pieces(self, text: str) -> Iterable[str]:
        """What a client is sent of `text`, each in an event of its own."""
        if self.pseudo:
            return text
        return (text,) if text else ()

    async def first_text(self) -> str:
        """Send the request and wait for text; empty only at the end. Call `close` in any case.

        Raises:
            EngineError, ServiceError: the engine failed, or cannot be reached.
        """
        self._start_timer()
        text = self._advance(await self._open())
        while not text and not self.ended:
            if not self._stream.ready():
                await self._stream.change()
            text = self.take_text()
        return text

    def take_text(self) -> str:
        """The text of what has arrived since the last call, after `first_text`; `ended` says if that was all.

        Raises:
            EngineError, ServiceError: the engine failed; what came before is incomplete.
        """
        return self._advance(self._stream.take())

    def listen(self, listener: Callable[[], None] | None) -> Callable[[], bool]:
        """After `first_text`: call `listener` whenever `take_text` has something; None ends that.

        Returns:
            What tells whether `take_text` has something.
        """
        return self._stream.listen(listener)

    def close(self) -> None:
        """Stop what still runs."""
        if self._timer is not None:
            self._timer.cancel()
        self._stream.cancel()

    def _advance(self, ids: list[int] | None) -> str:
        """Text of fresh ids; with the end's, where ids are None or decide it."""
        if ids is None or self.cause is not None:
            text = ""
        else:
            text = self._take(ids) if ids else ""
            if self.finish_reason == "error":
                return text
        self.ended = True
        return text + self._finish()

    async def _open(self) -> list[int] | None:
        """Send the request and wait for the first tokens.

        A connection that was kept open may turn out dead, so there is a second try.
        """
        try:
            await self._send()
            ids = await self._stream.read()
        except ConnectionLost:
            if self._stream.answered or self.cause or not self._stream.reused:
                raise
            self._stream = self._new_stream()
            await self._send()
            ids = await self._stream.read()
        if self._on_answer is not None:
            self._on_answer()
        if self._traits.style is None and ids is not None and len(ids) > 1:
            self.pseudo = self.pseudo or await self._stream.came_whole()
        return ids

    def _new_stream(self) -> TokenStream:
        return TokenStream(self._client, self.request.for_engine(), self._traits.normalizer())

    async def _send(self) -> None:
        if self.cause is not None:
            return
        await self._stream.open(self.request.trace_headers)
        self.timings.sent = perf_counter()

    def _take(self, ids: list[int]) -> str:
        self.timings.answers.append(self._stream.received_at)
        if self._stops is None and self._end_ids.isdisjoint(ids):
            self.completion_tokens += len(ids)
            if self.request.sampling.log_probs:
                self.token_ids += ids
            return self._decoder.push(ids)
        return self._take_carefully(ids)

    def _take_carefully(self, ids: list[int]) -> str:
        """Token by token, so that the count and the end do not depend on how many came together."""
        parts = []
        for token_id in ids:
            if token_id in self._end_ids:
                self.finish_reason = "stop"
                self._stream.end_soon()
                break
            self.completion_tokens += 1
            self.token_ids.append(token_id)
            text = self._decoder.push((token_id,))
            if self._stops is None:
                parts.append(text)
                continue
            parts.append(self._stops.push(text) if text else "")
            if self._stops.matched is not None:
                self.finish_reason, self.stop_reason = "stop", self._stops.matched
                self._stream.cancel()
                break
        return "".join(parts)

    def _finish(self) -> str:
        """Decide why it ended; returns the text that was held back."""
        if self.cause is not None:
            self.finish_reason = "timeout" if self.cause == "timeout" else "cancelled"
        elif self.finish_reason == "error":
            full = self.completion_tokens >= self.request.max_tokens
            self.finish_reason = "length" if full else "stop"
        if self._stops is not None and self._stops.matched is not None:
            return ""
        # An unfinished character at the limit is dropped rather than shown as U+FFFD.
        tail = self._decoder.flush(drop_incomplete=True)
        if self._stops is None:
            return tail
        return self._stops.push(tail) + self._stops.flush()

    def _start_timer(self) -> None:
        if self.request.timeout is not None:
            left = self.request.timeout - (perf_counter() - self.timings.arrived)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, left), self.cancel, "timeout")


def is_whole(generation: Generation) -> bool:
    """Did the answer end by itself?"""
    return generation.finish_reason in ("stop", "length")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
