"""vLLM's engine core behind the worker's Adapter: the engine of `engine: cuda-vllm`.

The core runs in its own process and schedules without waiting for us (asynchronous scheduling); requests
and tokens cross by vLLM's own socket. Its output processor, which makes texts, is left out: here a step is
token ids in, token ids out.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

from transformers import AutoTokenizer
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.executor import Executor

from common.errors import EngineError
from worker.descendants import end_with_worker
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
from worker.vllm.options import EngineOptions, checkpoint_folder, engine_arguments
from worker.vllm.sampling import end_ids, sampling_params

LOG = logging.getLogger("worker")
# A step waits this long for the core, so that new requests and cancellations are passed on in between.
WAIT_SECONDS = 0.002


class _Running(RunningRequest):
    """`ends` are the tokens that end it."""

    def __init__(self, request: GenerationRequest, ends: frozenset[int]) -> None:
        super().__init__(request)
        self.ends = ends


class VllmAdapter:
    """In-flight batching, paged KV cache and prefix caching by vLLM's engine core.

    `guide_end` is the token that its grammars end an answer with, None without guided decoding.
    """

    def __init__(self, core: Any, ready: Ready, bounds: Limits, guide_end: int | None = None) -> None:
        self._core = core
        self._guide_end = guide_end
        self.ready = ready
        self.limits = bounds
        self._running: dict[str, _Running] = {}
        self._load = Load(0, 0.0)

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def active(self) -> int:
        return len(self._running)

    def load(self) -> Load:
        # The core sends nothing while it is idle; what it said last is then over.
        return self._load if self._running else Load(0, 0.0)

    def submit(self, request: GenerationRequest) -> None:
        name = str(request.request_id)
        try:
            params = sampling_params(request.sampling, self._guide_end)
        except ValueError as error:
            raise RequestRefused(str(error), code="refused_by_engine") from error
        self._core.add_request(_core_request(name, request, params))
        self._running[name] = _Running(request, end_ids(request.sampling, self._guide_end))

    def cancel(self, request_id: int) -> None:
        if self._running.pop(str(request_id), None) is not None:
            self._core.abort_requests([str(request_id)])

    def step(self) -> list[Update | Refusal]:
        """New tokens of every request since the last step: several of one request when they are waiting."""
        found = self._next_outputs()
        if found is None:
            return []
        if found.scheduler_stats is not None:
            self._load = Load(len(found.outputs), round(found.scheduler_stats.kv_cache_usage, 4))
        now = time.monotonic_ns()
        return [result for output in found.outputs if (result := self._read(output, now))]

    def _next_outputs(self) -> Any:
        """What the core has sent, None when nothing came in time."""
        try:
            found = self._core.outputs_queue.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise EngineError(
                "vLLM's engine core has failed.", why=repr(found), code="engine_failed"
            ) from found
        return found

    def _read(self, output: Any, now: int) -> Update | Refusal | None:
        running = self._running.get(output.request_id)
        if running is None:  # cancelled while this was on its way
            return None
        running.scheduled_ns = running.scheduled_ns or now
        if output.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
            del self._running[output.request_id]
            return _failed(running, output)
        tokens, finish = self._take(running, output)
        if finish != Finish.NONE:
            del self._running[output.request_id]
            if output.finish_reason is None:
                self._core.abort_requests([output.request_id])
        log_probs = _log_probs(output, len(tokens)) if running.request.sampling.log_probs else None
        return Update(running.request.request_id, tokens, finish, log_probs, running.scheduled_ns)

    def _take(self, running: _Running, output: Any) -> tuple[array[int], Finish]:
        """The new tokens up to the end id (left out) or a stop word (kept), and why they end, if they do."""
        tokens = array("i")
        for token in output.new_token_ids:
            if token in running.ends and output.finish_reason == FinishReason.STOP:
                return tokens, Finish.END_ID
            tokens.append(token)
            if running.stop_words.ends_with(token):
                return tokens, Finish.STOP_WORDS
        ended = output.finish_reason is not None
        return tokens, Finish.LENGTH if ended else Finish.NONE


def _core_request(name: str, request: GenerationRequest, params: Any) -> Any:
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=request.input_ids.tolist(),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id=name,
    )


def _log_probs(output: Any, count: int) -> array[float]:
    """Of the chosen tokens: the first column of vLLM's table."""
    if output.new_logprobs is None:
        return array("f")
    return array("f", (float(row[0]) for row in output.new_logprobs.logprobs[:count]))


def _failed(running: _Running, output: Any) -> Refusal:
    reason = output.stop_reason or output.finish_reason
    return Refusal(
        running.request.request_id, Status.INTERNAL, "engine_failed", f"vLLM ended this request: {reason}."
    )


def load(package: Path, options: Mapping[str, Any]) -> VllmAdapter:
    """Start vLLM on the package's Hugging Face checkpoint.

    Raises:
        ConfigError: an option is wrong.
        CheckpointError: there is no Hugging Face checkpoint.
        Exception: whatever vLLM raises while it starts; the caller reports it.
    """
    settings = EngineOptions.parse(options)
    folder = checkpoint_folder(package, settings)
    guide_end = _guide_end(folder)
    arguments = engine_arguments(settings, folder, tokenizer=guide_end is not None)
    config = EngineArgs(**arguments).create_engine_config()
    core = EngineCoreClient.make_client(
        multiprocess_mode=True,
        asyncio_mode=False,
        vllm_config=config,
        executor_class=Executor.get_class(config),
        log_stats=True,
    )
    end_with_worker()
    cache = config.cache_config
    kv_tokens = int(cache.num_gpu_blocks or 0) * int(cache.block_size)
    features = (LOGIT_BIAS,) if arguments["skip_tokenizer_init"] else (LOGIT_BIAS, GUIDED_DECODING)
    bounds = replace(_limits(config.model_config, settings, kv_tokens), features=features)
    ready = bounds.ready(
        "cuda-vllm",
        max_batch_size=settings.max_batch_size,
        kv_cache_tokens=kv_tokens,
        kv_block_tokens=int(cache.block_size),
    )
    return VllmAdapter(core, ready, bounds, guide_end)


def _guide_end(folder: Path) -> int | None:
    """The end token of the checkpoint's tokenizer, with which vLLM's grammars end an answer.

    None where there is no tokenizer that vLLM could load; it then serves without guided decoding.
    """
    try:
        end: int | None = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).eos_token_id
    except Exception as error:  # tokenizers fail in any way; a model is served without its own all the same
        LOG.warning("Guided decoding is off, because the tokenizer cannot be loaded: %s", error)
        return None
    return end


def _limits(model: Any, options: EngineOptions, kv_tokens: int) -> Limits:
    total = min(int(model.max_model_len), kv_tokens)
    return Limits(
        vocab_size=int(model.get_vocab_size()),
        max_input_len=min(options.max_input_len or total, total - 1),
        max_output_len=min(options.max_output_len or total, total - 1),
        max_total_len=total,
    )
