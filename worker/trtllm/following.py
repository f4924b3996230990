"""Requests inside tensorrt_llm.LLM, followed in an event loop of their own.

The LLM hands tokens out through asynchronous iterators, one a request; the worker takes them in steps. Here
the one becomes the other: a thread runs the loop, and news wait in a queue until the stepping thread comes.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class News:
    """What came for a request: new tokens, the log probability of each, why it ended, what went wrong."""

    request_id: int
    tokens: Sequence[int] = ()
    log_probs: Sequence[float] = ()
    finish_reason: str | None = None
    problem: Exception | None = None


class Follower:
    """All methods but those of the loop are called by the stepping thread."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._results: dict[int, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="llm", daemon=True).start()

    def start(self, request_id: int, input_ids: list[int], params: Any, lora: Any = None) -> None:
        asked = {"inputs": input_ids, "sampling_params": params, "lora_request": lora}
        self._loop.call_soon_threadsafe(self._begin, request_id, asked)

    def abort(self, request_id: int) -> None:
        self._loop.call_soon_threadsafe(self._abort, request_id)

    def wait(self, timeout_s: float) -> list[News]:
        """Everything that has come, after waiting for the first of it."""
        try:
            found = [self._news.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        found += [self._news.get() for _ in range(self._news.qsize())]
        return found

    def _begin(self, request_id: int, asked: dict[str, Any]) -> None:
        task = self._loop.create_task(self._follow(request_id, asked))
        # The loop itself keeps only a weak reference.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _abort(self, request_id: int) -> None:
        result = self._results.get(request_id)
        if result is not None:
            result.abort()

    async def _follow(self, request_id: int, asked: dict[str, Any]) -> None:
        try:
            result = self._llm.generate_async(**asked, streaming=True)
            self._results[request_id] = result
            await self._read(request_id, result)
        except Exception as error:  # whatever the LLM raises for one request must end that request only
            self._news.put(News(request_id, problem=error))
        finally:
            self._results.pop(request_id, None)

    async def _read(self, request_id: int, result: Any) -> None:
        seen = 0
        async for _ in result:
            output = result.outputs[0]
            tokens = list(output.token_ids[seen:])
            log_probs = _log_probs(output.logprobs, tokens, seen)
            seen += len(tokens)
            self._news.put(News(request_id, tokens, log_probs, output.finish_reason))


def _log_probs(table: Sequence[Any] | None, tokens: Sequence[int], first: int) -> list[float]:
    """Of the chosen tokens. A row is a number, or {token id: what has the number as `logprob`}."""
    rows = (table or [])[first : first + len(tokens)]
    return [
        float(row[token].logprob) if isinstance(row, dict) else float(row)
        for row, token in zip(rows, tokens, strict=False)
    ]
