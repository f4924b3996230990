"""OpenVINO GenAI's continuous batching behind the worker's Adapter: the engine of `engine: cpu`."""

from __future__ import annotations

import itertools
import os
import sys
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# OpenVINO's Python package reports usage where this module can be imported; nothing here is reported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import numpy as np
import openvino as ov
import openvino_genai as genai

from common.errors import EngineError
from worker.openvino.cache import default_cache, graph_folder
from worker.openvino.options import BLOCK_TOKENS, EngineOptions, kv_cache_blocks, limits
from worker.openvino.spec import ModelSpec, read_config
from worker.protocol import Finish, GenerationRequest, Ready, Refusal, Sampling, Status, Update
from worker.serving import Load
from worker.stopping import StopWords
from worker.validate import Limits, RequestRefused

MAX_BATCHED_TOKENS = 256


@dataclass
class _Running:
    """A request inside the engine."""

    request: GenerationRequest
    handle: Any
    stop_words: StopWords
    scheduled_ns: int


class OpenVinoAdapter:
    """In-flight batching, paged KV cache and prefix caching by ContinuousBatchingPipeline.

    The pipeline is lost when two of its requests have one id, so its ids are counted here.
    """

    def __init__(self, pipeline: Any, ready: Ready, bounds: Limits) -> None:
        self._pipeline = pipeline
        self._ready = ready
        self._limits = bounds
        self._engine_ids = itertools.count()
        self._running: dict[int, _Running] = {}
        self._load = Load(0, 0.0)

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def ready(self) -> Ready:
        return self._ready

    @property
    def busy(self) -> bool:
        return bool(self._running) or self._pipeline.has_non_finished_requests()

    @property
    def active(self) -> int:
        return len(self._running)

    def load(self) -> Load:
        return self._load

    def submit(self, request: GenerationRequest) -> None:
        input_ids = ov.Tensor(np.array(request.input_ids, dtype=np.int64)[np.newaxis])
        try:
            config = generation_config(request.sampling, self._limits.vocab_size)
            handle = self._pipeline.add_request(next(self._engine_ids), input_ids, config)
        except RuntimeError as error:
            raise RequestRefused(_reason(error), code="refused_by_engine") from error
        self._running[request.request_id] = _Running(
            request, handle, StopWords(request.sampling.stop_words), time.monotonic_ns()
        )

    def cancel(self, request_id: int) -> None:
        running = self._running.pop(request_id, None)
        if running is not None:
            running.handle.cancel()

    def step(self) -> list[Update | Refusal]:
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        results = [result for running in list(self._running.values()) if (result := self._read(running))]
        metrics = self._pipeline.get_metrics()
        scheduled = min(metrics.scheduled_requests, len(self._running))
        self._load = Load(scheduled, round(metrics.cache_usage / 100, 4) if self._running else 0.0)
        return results

    def _read(self, running: _Running) -> Update | Refusal | None:
        """What the last step brought for one request, None if nothing."""
        tokens, log_probs, finish = array("i"), array("f"), Finish.NONE
        while finish == Finish.NONE and running.handle.can_read():
            for output in running.handle.read().values():
                finish = self._take(running, output, tokens, log_probs)
        request_id = running.request.request_id
        if finish == Finish.NONE and not tokens:
            if running.handle.get_status() == genai.GenerationStatus.RUNNING:
                return None
            del self._running[request_id]
            return _no_room(request_id)
        if finish != Finish.NONE:
            del self._running[request_id]
        asked = running.request.sampling.log_probs
        return Update(request_id, tokens, finish, log_probs if asked else None, running.scheduled_ns)

    def _take(self, running: _Running, output: Any, tokens: array[int], log_probs: array[float]) -> Finish:
        """Add the tokens of one output up to the end id (left out) or a stop word (kept)."""
        end_id = running.request.sampling.end_id
        for token, log_prob in zip(output.generated_ids, output.generated_log_probs, strict=True):
            if token == end_id:
                return Finish.END_ID
            tokens.append(token)
            log_probs.append(log_prob)
            if running.stop_words.ends_with(token):
                running.handle.cancel()
                return Finish.STOP_WORDS
        reason = output.finish_reason
        return Finish.NONE if reason == genai.GenerationFinishReason.NONE else Finish.LENGTH


def _no_room(request_id: int) -> Refusal:
    return Refusal(
        request_id,
        Status.UNAVAILABLE,
        "kv_cache_full",
        "The engine dropped this request: its tokens do not fit the KV cache. "
        "Raise kv_cache_tokens in deploy/config.json.",
    )


def _reason(error: RuntimeError) -> str:
    """The last line of an OpenVINO check, which says what was wrong; the first names a source file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "The engine refused the request."


def generation_config(sampling: Sampling, vocab_size: int) -> Any:
    """The engine's form of `sampling`, with the meaning that TensorRT-LLM's backend gives it.

    Neither top_k nor top_p, top_k 1 or temperature 0 is greedy; top_k alone is top_k with top_p 1.
    Without a seed every request draws its own.
    """
    config = genai.GenerationConfig()
    config.max_new_tokens = sampling.max_tokens
    config.min_new_tokens = sampling.min_tokens
    config.ignore_eos = sampling.end_id is None
    # The pipeline would look for an end id of the model's own if none were set.
    config.set_eos_token_id(0 if sampling.end_id is None else sampling.end_id)
    if sampling.end_id is None:
        config.min_new_tokens = 0
    config.logprobs = int(sampling.log_probs)
    config.repetition_penalty = sampling.repetition_penalty or 1.0
    config.presence_penalty = sampling.presence_penalty or 0.0
    config.frequency_penalty = sampling.frequency_penalty or 0.0
    _set_choice(config, sampling, vocab_size)
    config.validate()
    return config


def _set_choice(config: Any, sampling: Sampling, vocab_size: int) -> None:
    top_k, top_p = sampling.top_k or 0, max(sampling.top_p or 0.0, 0.0)
    greedy = top_k == 1 or sampling.temperature == 0.0 or (top_k == 0 and top_p == 0.0)
    config.do_sample = not greedy
    if greedy:
        return
    config.temperature = 1.0 if sampling.temperature is None else sampling.temperature
    config.top_p = top_p or 1.0
    config.top_k = min(top_k, vocab_size) or vocab_size
    config.rng_seed = int.from_bytes(os.urandom(8), "little") if sampling.seed is None else sampling.seed


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
    folder = graph_folder(checkpoint, settings.precision, default_cache())
    blocks = kv_cache_blocks(spec, settings)
    bounds = limits(spec, settings, blocks * BLOCK_TOKENS)
    ready = Ready(
        engine="cpu",
        vocab_size=bounds.vocab_size,
        max_batch_size=settings.max_batch_size,
        max_input_len=bounds.max_input_len,
        max_output_len=bounds.max_output_len,
        kv_cache_tokens=blocks * BLOCK_TOKENS,
        kv_block_tokens=BLOCK_TOKENS,
    )
    return OpenVinoAdapter(_pipeline(folder, settings, spec, blocks), ready, bounds)


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
