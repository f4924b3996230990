"""A stand-in for tensorrt_llm 1.2, for tests on machines without a GPU. It is NOT TensorRT-LLM.

It has the names, arguments and behaviour that the adapter relies on, as far as the published interface says:
arguments of LLM and SamplingParams (unknown ones are refused), asynchronous results with growing token_ids,
finish reasons, abort, errors of one request, statistics, health. Its model says after each token the next
number; tokens below FAULTS are faults to inject. Results come from a thread, several tokens at a time.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from builder.llm_args import contract
from tensorrt_llm.llmapi import LoRARequest

FIELDS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "data" / "trtllm_sampling_params.json").read_text(encoding="utf-8")
)["fields"]
FAULTS = {3: "error", 4: "timeout", 5: "cancelled", 6: "death", 7: "refusal"}
TOKEN_SECONDS = 0.002
LORA_FIRST = 40


class RequestError(RuntimeError):
    """One request failed; the others go on."""


class SamplingParams:
    """The published fields; others are refused, as are values out of range."""

    def __init__(self, **given: Any) -> None:
        unknown = sorted(set(given) - set(FIELDS))
        if unknown:
            raise TypeError(f"SamplingParams.__init__() got an unexpected keyword argument {unknown[0]!r}")
        vars(self).update({**FIELDS, **given})
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass
class CompletionOutput:
    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class RequestOutput:
    """Grows while it is iterated."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.outputs = [CompletionOutput()]
        self.finished = False
        self.aborted = False
        self._loop = loop
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def abort(self) -> None:
        self.aborted = True

    def put(self, response: Any) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, response)

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        response = await self._queue.get()
        if isinstance(response, Exception):
            raise response
        tokens, log_probs, reason = response
        output = self.outputs[0]
        output.token_ids += tokens
        output.logprobs += log_probs
        output.finish_reason = reason
        self.finished = reason is not None
        return self


class LLM:
    """Serves the checkpoint folder `model`; only its vocabulary size is read."""

    def __init__(self, **arguments: Any) -> None:
        unknown = sorted(set(arguments) - set(contract("1.2.1")["names"]))
        if unknown:
            raise ValueError(f"{unknown[0]}: Extra inputs are not permitted")
        assert arguments["skip_tokenizer_init"], "this stand-in has no tokenizer"
        self.arguments = arguments
        config = json.loads((Path(arguments["model"]) / "config.json").read_text(encoding="utf-8"))
        self._vocab_size = int(config["vocab_size"])
        self._alive = True
        self._running = 0

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams,
        lora_request: LoRARequest | None = None,
        streaming: bool = False,
    ) -> RequestOutput:
        if not self._alive:
            raise RuntimeError("LLM is shutting down")
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        if FAULTS.get(inputs[-1]) == "refusal":
            raise ValueError("The sum of prompt length should not exceed max_num_tokens")
        assert streaming
        result = RequestOutput(asyncio.get_running_loop())
        if lora_request is not None:
            assert lora_request.lora_path in self.arguments["lora_config"]["lora_dir"]
            inputs = [*inputs, LORA_FIRST + lora_request.lora_int_id]  # what an adapter changes
        threading.Thread(target=self._compute, args=(inputs, sampling_params, result), daemon=True).start()
        return result

    def get_stats(self, timeout: float | None = 2) -> list[Mapping[str, Any]]:
        blocks = {"maxNumBlocks": 100, "freeNumBlocks": 100 - self._running, "tokensPerBlock": 32}
        return [{"iter": 1, "kvCacheStats": blocks}]

    def _check_health(self) -> bool:
        return self._alive

    def _compute(self, inputs: list[int], params: SamplingParams, result: RequestOutput) -> None:
        self._running += 1
        try:
            self._generate(inputs, params, result)
        finally:
            self._running -= 1

    def _generate(self, inputs: list[int], params: SamplingParams, result: RequestOutput) -> None:
        tokens = list(inputs)
        for place in range(params.max_tokens):
            time.sleep(TOKEN_SECONDS)
            if result.aborted:
                return result.put(([], [], "cancelled"))
            if place == 2 and (fault := FAULTS.get(inputs[-1])):
                return self._fail(fault, result)
            tokens.append(self._next(tokens, params))
            is_end = tokens[-1] == params.end_id and not params.ignore_eos
            last = place == params.max_tokens - 1
            reason = "stop" if is_end else "length" if last else None
            log_probs = [{tokens[-1]: Logprob(-0.5, 1)}] if params.logprobs else []
            result.put((tokens[-1:], log_probs, reason))
            if is_end:
                return None
        return None

    def _fail(self, fault: str, result: RequestOutput) -> None:
        if fault == "error":
            result.put(RequestError("the KV cache manager refused it"))
        elif fault == "death":
            self._alive = False
        else:
            result.put(([], [], fault))

    def _next(self, tokens: list[int], params: SamplingParams) -> int:
        """The token after the last one, unless the logits processor prefers another."""
        logits = np.zeros((1, 1, self._vocab_size), dtype=np.float32)
        order = (np.arange(self._vocab_size) - tokens[-1] - 1) % self._vocab_size
        logits[0, 0] = 10.0 - order / 10
        if params.logits_processor:
            params.logits_processor(1, logits, [tokens], None, None)
        return int(logits[0, 0].argmax())
