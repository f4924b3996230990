"""tensorrt_llm.LLM behind the worker's Adapter."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from common.errors import EngineError
from worker.protocol import Finish, GenerationRequest, Ready, Refusal, Status, Update
from worker.running import RunningRequest
from worker.serving import Load
from worker.trtllm.following import Follower, News
from worker.validate import Limits, RequestRefused

# A step waits this long for tokens, so that new requests and cancellations are passed on in between.
WAIT_SECONDS = 0.002
# Without any token for so long, the LLM is asked whether it still lives.
SILENCE_SECONDS = 1.0


class TrtLlmAdapter:
    """In-flight batching, paged KV cache and block reuse by TensorRT-LLM's PyTorch runtime.

    `parameters` makes its SamplingParams, `healthy` says whether its processes live, `kv_used` how full its
    KV cache was last; `loras` are its LoRARequests by task id.
    """

    def __init__(
        self,
        follower: Follower,
        ready: Ready,
        bounds: Limits,
        *,
        parameters: Callable[[GenerationRequest], Any],
        healthy: Callable[[], bool] = lambda: True,
        kv_used: Callable[[], float] = lambda: 0.0,
        loras: Mapping[int, Any] | None = None,
    ) -> None:
        self._follower = follower
        self.ready = ready
        self.limits = bounds
        self._parameters = parameters
        self._healthy = healthy
        self._kv_used = kv_used
        self._loras = loras or {}
        self._running: dict[int, RunningRequest] = {}
        self._scheduled = 0
        self._heard = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def active(self) -> int:
        return len(self._running)

    def load(self) -> Load:
        return Load(self._scheduled, self._kv_used()) if self._running else Load(0, 0.0)

    def submit(self, request: GenerationRequest) -> None:
        lora = self._lora(request.sampling.lora_task_id)
        try:
            params = self._parameters(request)
        except ValueError as error:
            raise RequestRefused(str(error), code="refused_by_engine") from error
        if not self._running:
            self._heard = time.monotonic()
        self._running[request.request_id] = RunningRequest(request)
        self._follower.start(request.request_id, request.input_ids.tolist(), params, lora)

    def cancel(self, request_id: int) -> None:
        if self._running.pop(request_id, None) is not None:
            self._follower.abort(request_id)

    def step(self) -> list[Update | Refusal]:
        """New tokens of every request since the last step: several of one request when they are waiting."""
        found = self._follower.wait(WAIT_SECONDS)
        if not found:
            self._check_silence()
            return []
        self._heard = time.monotonic()
        by_request: dict[int, list[News]] = {}
        for news in found:
            by_request.setdefault(news.request_id, []).append(news)
        self._scheduled = len(by_request)
        now = time.monotonic_ns()
        return [result for name, all_of in by_request.items() if (result := self._read(name, all_of, now))]

    def _lora(self, task_id: int | None) -> Any:
        if task_id is not None and task_id not in self._loras:
            known = ", ".join(map(str, self._loras))
            raise RequestRefused(f"lora_task_id is {task_id}; this model has {known}.", code="lora_unknown")
        return None if task_id is None else self._loras[task_id]

    def _check_silence(self) -> None:
        now = time.monotonic()
        if now - self._heard < SILENCE_SECONDS:
            return
        self._heard = now
        if not self._healthy():
            raise EngineError(
                "TensorRT-LLM has stopped.", why="Its own health check says so.", code="engine_failed"
            )

    def _read(self, request_id: int, found: list[News], now: int) -> Update | Refusal | None:
        running = self._running.get(request_id)
        if running is None:  # cancelled while this was on its way
            return None
        running.scheduled_ns = running.scheduled_ns or now
        tokens, log_probs, finish = array("i"), array("f"), Finish.NONE
        for news in found:
            if refusal := _refusal(request_id, news):
                del self._running[request_id]
                return refusal
            finish = _take(running, news, tokens, log_probs)
            if finish != Finish.NONE:
                break
        if finish != Finish.NONE:
            del self._running[request_id]
            self._follower.abort(request_id)
        asked = running.request.sampling.log_probs
        return Update(request_id, tokens, finish, log_probs if asked else None, running.scheduled_ns)


def _take(running: RunningRequest, news: News, tokens: array[int], log_probs: array[float]) -> Finish:
    """Add the new tokens up to the end id (left out) or a stop word (kept), and why they end, if they do."""
    values = [*news.log_probs, *([0.0] * (len(news.tokens) - len(news.log_probs)))]
    for place, token in enumerate(news.tokens):
        last = place == len(news.tokens) - 1
        if last and news.finish_reason == "stop" and token == running.request.sampling.end_id:
            return Finish.END_ID
        tokens.append(token)
        log_probs.append(values[place])
        if running.stop_words.ends_with(token):
            return Finish.STOP_WORDS
    return {"stop": Finish.END_ID, "length": Finish.LENGTH}.get(news.finish_reason or "", Finish.NONE)


def _refusal(request_id: int, news: News) -> Refusal | None:
    """The end of a request that TensorRT-LLM did not carry out."""
    if isinstance(news.problem, (ValueError, TypeError)):
        return Refusal(request_id, Status.INVALID, "refused_by_engine", str(news.problem))
    if news.problem is not None:
        message = f"TensorRT-LLM failed this request: {news.problem}"
        return Refusal(request_id, Status.INTERNAL, "engine_failed", message)
    if news.finish_reason not in (None, "stop", "length"):
        message = f"TensorRT-LLM ended this request: {news.finish_reason}."
        return Refusal(request_id, Status.UNAVAILABLE, "engine_ended", message)
    return None
