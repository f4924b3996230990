"""OpenVINO GenAI's continuous batching behind the worker's Adapter: the engine of `engine: cpu`."""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from common.errors import EngineError
from worker.openvino.banning import BannedTokens
from worker.openvino.bias import barred_by_bias
from worker.openvino.cache import default_cache, graph_folder
from worker.openvino.guides import GuideChecker, Problem, refuse_unless_alone
from worker.openvino.options import BLOCK_TOKENS, EngineOptions, kv_cache_blocks, limits
from worker.openvino.sampling import generation_config
from worker.openvino.spec import ModelSpec, read_config
from worker.openvino.vocabulary import textless_tokens
from worker.protocol import (
    GUIDED_DECODING,
    LOGIT_BIAS,
    Finish,
    GenerationRequest,
    Ready,
    Refusal,
    Status,
    Update,
)
from worker.running import RunningRequest
from worker.serving import Load
from worker.validate import Limits, RequestRefused

MAX_BATCHED_TOKENS = 256
# With nothing else to do a step waits this long for a guide that is being tried.
WAIT_SECONDS = 0.002


@dataclass(frozen=True)
class Guides:
    """What guided decoding needs: the check of guides, and the tokens that no guided answer holds."""

    checker: GuideChecker
    textless: frozenset[int]


class _Running(RunningRequest):
    """A request inside the engine. With bad words it runs in segments, see `banning`."""

    def __init__(self, request: GenerationRequest, vocab_size: int) -> None:
        super().__init__(request)
        self.request_id = request.request_id
        self.generated = array("i")
        self.handle: Any = None
        self.textless: frozenset[int] = frozenset()
        self._bans = _bans(request, vocab_size)
        self._banned = self._bans.next() if self._bans else None

    def config(self, vocab_size: int) -> Any:
        """Sampling of the next segment. Raises RuntimeError when the engine does not accept a value."""
        return generation_config(
            self.request.sampling, vocab_size, generated=len(self.generated), banned=self._banned
        )

    def start_segment(self, pipeline: Any, engine_id: int, vocab_size: int) -> None:
        """Give the engine the prompt and what has been generated. Raises RuntimeError when it refuses."""
        tokens = np.array([*self.request.input_ids, *self.generated], dtype=np.int64)
        self.handle = pipeline.add_request(engine_id, ov.Tensor(tokens[np.newaxis]), self.config(vocab_size))
        self.scheduled_ns = self.scheduled_ns or time.monotonic_ns()

    def take(self, token: int) -> Finish:
        """Count one more token in; why the request ends with it, if it does."""
        self.generated.append(token)
        if self._bans:
            self._bans.append(token)
        return Finish.STOP_WORDS if self.stop_words.ends_with(token) else Finish.NONE

    def needs_new_segment(self) -> bool:
        """Whether other tokens are barred from now on than in the running segment."""
        before = self._banned
        if self._bans:
            self._banned = self._bans.next()
        return self._banned != before


def _bans(request: GenerationRequest, vocab_size: int) -> BannedTokens | None:
    sampling = request.sampling
    if not (sampling.bad_words or sampling.token_bias):
        return None
    return BannedTokens(sampling, request.input_ids, barred_by_bias(sampling.token_bias, vocab_size))


class OpenVinoAdapter:
    """In-flight batching, paged KV cache and prefix caching by ContinuousBatchingPipeline.

    The pipeline is lost when two of its requests have one id, so its ids are counted here. It does not hold
    to its own max_num_seqs either, so requests beyond max_batch_size wait here.
    """

    def __init__(self, pipeline: Any, ready: Ready, bounds: Limits, guides: Guides | None = None) -> None:
        self._pipeline = pipeline
        self.ready = ready
        self.limits = bounds
        self._guides = guides
        self._trying: dict[int, tuple[_Running, Future[Problem | None]]] = {}
        self._engine_ids = itertools.count()
        self._waiting: dict[int, _Running] = {}
        self._running: dict[int, _Running] = {}
        self._load = Load(0, 0.0)

    @property
    def busy(self) -> bool:
        return (
            bool(self._running or self._waiting or self._trying) or self._pipeline.has_non_finished_requests()
        )

    @property
    def active(self) -> int:
        return len(self._running) + len(self._waiting) + len(self._trying)

    def load(self) -> Load:
        return self._load

    def submit(self, request: GenerationRequest) -> None:
        waiting = _Running(request, self.limits.vocab_size)
        try:
            waiting.config(self.limits.vocab_size)
        except RuntimeError as error:
            raise RequestRefused(_reason(error), code="refused_by_engine") from error
        if self._guides is None or request.sampling.guide_type is None:
            self._waiting[request.request_id] = waiting
        else:
            refuse_unless_alone(request.sampling)
            waiting.textless = self._guides.textless
            self._trying[request.request_id] = waiting, self._guides.checker.check(request.sampling)

    def cancel(self, request_id: int) -> None:
        self._waiting.pop(request_id, None)
        self._trying.pop(request_id, None)
        running = self._running.pop(request_id, None)
        if running is not None:
            running.handle.cancel()

    def step(self) -> list[Update | Refusal]:
        results = self._admit_tried() if self._trying else []
        results += self._admit()
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        results += [result for running in list(self._running.values()) if (result := self._read(running))]
        metrics = self._pipeline.get_metrics()
        self._load = Load(len(self._running), round(metrics.cache_usage / 100, 4) if self._running else 0.0)
        return results

    def _admit_tried(self) -> list[Update | Refusal]:
        """Let the requests wait for room whose guides are good, and refuse the others."""
        if not (self._running or self._waiting):
            wait([tried for _, tried in self._trying.values()], WAIT_SECONDS, FIRST_COMPLETED)
        refusals: list[Update | Refusal] = []
        for request_id, (waiting, tried) in list(self._trying.items()):
            if not tried.done():
                continue
            del self._trying[request_id]
            if problem := tried.result():
                refusals.append(Refusal(request_id, problem.status, problem.code, problem.message))
            else:
                self._waiting[request_id] = waiting
        return refusals

    def _admit(self) -> list[Update | Refusal]:
        """Start waiting requests, oldest first, while there is room in the batch."""
        refusals: list[Update | Refusal] = []
        while self._waiting and len(self._running) < self.ready.max_batch_size:
            request_id = next(iter(self._waiting))
            self._running[request_id] = self._waiting.pop(request_id)
            if refusal := self._start(self._running[request_id]):
                refusals.append(refusal)
        return refusals

    def _start(self, running: _Running) -> Refusal | None:
        """Give the engine the next segment of a running request; a refusal ends the request."""
        try:
            running.start_segment(self._pipeline, next(self._engine_ids), self.limits.vocab_size)
        except RuntimeError as error:
            del self._running[running.request_id]
            return Refusal(running.request_id, Status.INVALID, "refused_by_engine", _reason(error))
        return None

    def _read(self, running: _Running) -> Update | Refusal | None:
        """What the last step brought for one request, None if nothing."""
        tokens, log_probs, finish = array("i"), array("f"), Finish.NONE
        while finish == Finish.NONE and running.handle.can_read():
            for output in running.handle.read().values():
                finish = _take(running, output, tokens, log_probs)
        if finish == Finish.NONE and not tokens:
            if running.handle.get_status() == genai.GenerationStatus.RUNNING:
                return None
            del self._running[running.request_id]
            return _no_room(running.request_id)
        if finish == Finish.CANCELLED:
            self.cancel(running.request_id)
            return _nothing_follows(running.request_id)
        if finish != Finish.NONE:
            self.cancel(running.request_id)
        elif running.needs_new_segment():
            running.handle.cancel()
            if refusal := self._start(running):
                return refusal
        asked = running.request.sampling.log_probs
        return Update(running.request_id, tokens, finish, log_probs if asked else None, running.scheduled_ns)


def _take(running: _Running, output: Any, tokens: array[int], log_probs: array[float]) -> Finish:
    """Add the tokens of one output up to the end id (left out) or a stop word (kept).

    CANCELLED is a guide that lets no token follow: then the engine takes one without a text.
    """
    for token, log_prob in zip(output.generated_ids, output.generated_log_probs, strict=True):
        if token == running.request.sampling.end_id:
            return Finish.END_ID
        if token in running.textless:
            return Finish.CANCELLED
        tokens.append(token)
        log_probs.append(log_prob)
        finish = running.take(token)
        if finish != Finish.NONE:
            return finish
    ended = output.finish_reason != genai.GenerationFinishReason.NONE
    return Finish.LENGTH if ended else Finish.NONE


def _no_room(request_id: int) -> Refusal:
    return Refusal(
        request_id,
        Status.UNAVAILABLE,
        "kv_cache_full",
        "The engine dropped this request: its tokens do not fit the KV cache. "
        "Raise kv_cache_tokens in deploy/config.json.",
    )


def _nothing_follows(request_id: int) -> Refusal:
    return Refusal(
        request_id,
        Status.INVALID,
        "guide_dead_end",
        "guided_decoding_guide: no token of this model can follow what has been generated.",
    )


def _reason(error: RuntimeError) -> str:
    """The last line of an OpenVINO check, which says what was wrong; the first names a source file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "The engine refused the request."


def load(package: Path, options: Mapping[str, Any]) -> OpenVinoAdapter:
    """Start the engine on `package`/checkpoint.

    Raises:
        ConfigError: an option is wrong.
        CheckpointError: the package holds no TRT-LLM checkpoint.
        UnsupportedModelError: this engine cannot compute the model.
        ResourceError: the KV cache does not fit in memory.
        EngineError: OpenVINO refused the graph.
    """
    settings = EngineOptions.parse(options)
    checkpoint = package / "checkpoint"
    spec = read_config(checkpoint)
    window = settings.max_attention_window_size
    folder = graph_folder(checkpoint, settings.precision, window, default_cache())
    blocks = kv_cache_blocks(spec, settings)
    textless = textless_tokens(folder)
    guides = None if textless is None else Guides(GuideChecker(folder), textless)
    features = (LOGIT_BIAS,) if guides is None else (LOGIT_BIAS, GUIDED_DECODING)
    bounds = replace(limits(spec, settings, blocks * BLOCK_TOKENS), features=features)
    ready = bounds.ready(
        "cpu",
        max_batch_size=settings.max_batch_size,
        kv_cache_tokens=blocks * BLOCK_TOKENS,
        kv_block_tokens=BLOCK_TOKENS,
    )
    return OpenVinoAdapter(_pipeline(folder, settings, spec, blocks), ready, bounds, guides)


def _pipeline(folder: Path, options: EngineOptions, spec: ModelSpec, blocks: int) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = blocks
    scheduler.max_num_seqs = options.max_batch_size
    scheduler.max_num_batched_tokens = max(MAX_BATCHED_TOKENS, options.max_batch_size)
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    try:
        return genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", _properties(options))
    except RuntimeError as error:
        raise EngineError(
            f"OpenVINO cannot run this {spec.architecture} model.", why=_reason(error), code="engine_start"
        ) from error


def _properties(options: EngineOptions) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    if options.precision == "exact":
        properties |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    if options.threads is not None:
        properties["INFERENCE_NUM_THREADS"] = options.threads
    return properties
