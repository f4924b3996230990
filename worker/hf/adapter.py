"""An engine of one batch after the other behind the worker's Adapter."""

from __future__ import annotations

import logging
import time
from array import array

from common.errors import EngineError
from worker.hf.engine import Computed, Engine
from worker.hf.rules import TokenRules
from worker.protocol import Finish, GenerationRequest, Ready, Refusal, Status, Update
from worker.running import RunningRequest
from worker.serving import Load
from worker.validate import Limits

LOG = logging.getLogger("worker")
# So many failed steps in a row mean that the engine is broken, not a batch.
MOST_FAILURES = 3


class HfAdapter:
    """In-flight batching and paged KV cache by transformers."""

    def __init__(self, engine: Engine, ready: Ready, bounds: Limits) -> None:
        self._engine = engine
        self.ready = ready
        self.limits = bounds
        self._running: dict[str, RunningRequest] = {}
        self._failures = 0
        self._load = Load(0, 0.0)

    @property
    def busy(self) -> bool:
        return bool(self._running) or self._engine.cancelling

    @property
    def active(self) -> int:
        return len(self._running)

    def load(self) -> Load:
        return self._load if self._running else Load(0, 0.0)

    def submit(self, request: GenerationRequest) -> None:
        name, sampling = str(request.request_id), request.sampling
        self._engine.add(name, request.input_ids, sampling.max_tokens, sampling.end_id, TokenRules(request))
        self._running[name] = RunningRequest(request)

    def cancel(self, request_id: int) -> None:
        if self._running.pop(str(request_id), None) is not None:
            self._engine.cancel(str(request_id))

    def step(self) -> list[Update | Refusal]:
        began = time.monotonic_ns()
        try:
            computed = self._engine.step()
        except (
            Exception
        ) as error:  # whatever PyTorch raises for a batch must end its requests, not the worker
            return self._fail_running(error)
        self._failures = 0
        self._load = Load(len(computed), round(self._engine.kv_used_fraction(), 4))
        return [update for one in computed if (update := self._read(one, began))]

    def _fail_running(self, error: Exception) -> list[Update | Refusal]:
        LOG.error("A step of the engine failed.", exc_info=error)
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            raise EngineError(
                "The cuda-hf engine fails at every step.", why=repr(error), code="engine_failed"
            ) from error
        self._engine.restart(error)
        failed, self._running = self._running, {}
        message = f"The engine failed while this request was running: {error}"
        return [
            Refusal(running.request.request_id, Status.INTERNAL, "engine_failed", message)
            for running in failed.values()
        ]

    def _read(self, computed: Computed, began: int) -> Update | None:
        running = self._running.get(computed.name)
        if running is None:  # cancelled before this step
            return None
        running.scheduled_ns = running.scheduled_ns or began
        if computed.token is None:
            return None
        finish = _finish(running, computed)
        tokens = array("i", [] if finish == Finish.END_ID else [computed.token])
        if finish != Finish.NONE:
            del self._running[computed.name]
            if not computed.ended:
                self._engine.cancel(computed.name)
        log_probs = _log_probs(running, computed, len(tokens))
        return Update(running.request.request_id, tokens, finish, log_probs, running.scheduled_ns)


def _finish(running: RunningRequest, computed: Computed) -> Finish:
    """Why the request ends with this token, if it does. The end id is no part of the answer."""
    assert computed.token is not None
    if computed.ended and computed.token == running.request.sampling.end_id:
        return Finish.END_ID
    if running.stop_words.ends_with(computed.token):
        return Finish.STOP_WORDS
    return Finish.LENGTH if computed.ended else Finish.NONE


def _log_probs(running: RunningRequest, computed: Computed, count: int) -> array[float] | None:
    if not running.request.sampling.log_probs:
        return None
    return array("f", [computed.log_prob or 0.0][:count])
