"""Greedy generation through OpenVINO GenAI's ContinuousBatchingPipeline, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def generate(folder: Path, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """`new_tokens` after each prompt, all prompts in one batch in flight."""
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 64
    pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", EXACT)
    config = genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.ignore_eos = True
    config.set_eos_token_id(0)
    handles = [
        pipeline.add_request(number, ov.Tensor(np.array([prompt], dtype=np.int64)), config)
        for number, prompt in enumerate(prompts)
    ]
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return [list(handle.read_all()[0].generated_ids) for handle in handles]
