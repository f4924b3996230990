"""transformers' continuous batching alone, by its own manager: what benchmarks/gpu.py compares cuda-hf with.

It runs as transformers would have it: CUDA graphs and preparing ahead where its own rules allow them, one
choice of tokens for all requests (the likeliest), every token streamed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks import bare
from worker.hf.load import batching_config
from worker.hf.options import EngineOptions


class HfEngine:
    """See benchmarks.bare.BareEngine."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._manager = start(options)
        self._new_tokens = options.new_tokens
        self._told: Counter[str] = Counter()

    def add(self, name: str, prompt: list[int]) -> None:
        length = self._new_tokens
        self._manager.add_request(prompt, request_id=name, max_new_tokens=length, streaming=True)

    def step(self) -> Iterable[bare.News]:
        """One token: its queue hands them out one by one, each with all tokens before it."""
        output = self._manager.get_result(timeout=30)
        if output is None or output.error:
            raise SystemExit(f"transformers stopped: {output and output.error}")
        name = output.request_id
        new = len(output.generated_tokens) - self._told[name]
        self._told[name] += new
        return [bare.News(name, new, output.is_finished())]

    def close(self) -> None:
        self._manager.stop(block=True, timeout=10)


def start(options: argparse.Namespace) -> Any:
    """A manager of transformers, with the cache and batch sizes of our worker."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    settings = EngineOptions(max_batch_size=options.max_batch_size, dtype=options.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=settings.dtype, attn_implementation="sdpa"
    ).to(device)
    config = replace(batching_config(settings, device), use_async_batching=None)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=config,
    )
    manager.warmup()
    manager.start()
    return manager


if __name__ == "__main__":
    bare.main(HfEngine)
