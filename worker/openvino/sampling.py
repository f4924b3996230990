"""Sampling parameters in the engine's form, with the meaning that TensorRT-LLM's backend gives them."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import openvino_genai as genai

from worker.choice import choice, seed_of
from worker.openvino.guides import structured_output
from worker.protocol import Sampling

SEED_MASK = (1 << 64) - 1


def generation_config(
    sampling: Sampling, vocab_size: int, *, generated: int = 0, banned: Set[int] | None = None
) -> Any:
    """The engine's GenerationConfig for what is left of a request.

    Args:
        generated: tokens that the request has already made.
        banned: tokens that must not come; then the caller watches for the end id itself.

    Raises:
        RuntimeError: the engine does not accept a value.
    """
    config = genai.GenerationConfig()
    config.max_new_tokens = sampling.max_tokens - generated
    config.logprobs = int(sampling.log_probs)
    config.repetition_penalty = sampling.repetition_penalty or 1.0
    config.presence_penalty = sampling.presence_penalty or 0.0
    config.frequency_penalty = sampling.frequency_penalty or 0.0
    if banned is None:
        _set_end(config, sampling)
    else:
        _ban(config, banned)
    if sampling.guide_type is not None:
        config.structured_output_config = structured_output(sampling.guide_type, sampling.guide)
    _set_choice(config, sampling, vocab_size, generated)
    config.validate()
    return config


def _set_end(config: Any, sampling: Sampling) -> None:
    config.ignore_eos = sampling.end_id is None
    # Without one the engine would take the model's own end id.
    config.set_eos_token_id(sampling.end_id or 0)
    config.min_new_tokens = 0 if sampling.end_id is None else sampling.min_tokens


def _ban(config: Any, banned: Set[int]) -> None:
    """The engine gives end ids no probability before min_new_tokens, and ignore_eos lets none of them end."""
    config.ignore_eos = True
    config.set_eos_token_id(min(banned, default=0))
    if banned:
        config.stop_token_ids = set(banned)
        config.min_new_tokens = config.max_new_tokens


def _set_choice(config: Any, sampling: Sampling, vocab_size: int, generated: int) -> None:
    chosen = choice(sampling)
    config.do_sample = not chosen.greedy
    if chosen.greedy:
        return
    config.temperature = chosen.temperature
    config.top_p = chosen.top_p
    config.top_k = min(chosen.top_k, vocab_size) or vocab_size
    config.rng_seed = (seed_of(sampling) + generated) & SEED_MASK
