"""Greedy generation through OpenVINO GenAI's ContinuousBatchingPipeline, in float32."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

# Small enough that prompts are read in several steps, between the steps of other requests.
CHUNK_TOKENS = 16
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def generate(
    folder: Path, prompts: list[list[int]], new_tokens: int, chunk_tokens: int = CHUNK_TOKENS
) -> list[list[int]]:
    """`new_tokens` after each prompt, all prompts in one batch in flight."""
    return Generator(folder, chunk_tokens).generate(prompts, new_tokens)


class Generator:
    """A pipeline that keeps its prefix cache from one call of `generate` to the next."""

    def __init__(self, folder: Path, chunk_tokens: int = CHUNK_TOKENS) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = 64
        scheduler.max_num_batched_tokens = chunk_tokens
        scheduler.enable_prefix_caching = True
        self._pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", EXACT)
        self._numbers = itertools.count()

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        config = genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos = True
        config.set_eos_token_id(0)
        handles = [self._add(prompt, config) for prompt in prompts]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return [list(handle.read_all()[0].generated_ids) for handle in handles]

    def _add(self, prompt: list[int], config: genai.GenerationConfig) -> genai.GenerationHandle:
        ids = ov.Tensor(np.array([prompt], dtype=np.int64))
        return self._pipeline.add_request(next(self._numbers), ids, config)
