"""Sampling parameters in vLLM's form."""

from __future__ import annotations

from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from worker.choice import choice, seed_of
from worker.protocol import Sampling

SEED_MASK = (1 << 63) - 1


def sampling_params(sampling: Sampling) -> Any:
    """vLLM's SamplingParams; single-token ends are the engine's, longer stop words are watched outside.

    Raises:
        ValueError: vLLM does not accept a value.
    """
    chosen = choice(sampling)
    params = SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=0.0 if chosen.greedy else chosen.temperature,
        top_k=chosen.top_k,
        top_p=chosen.top_p,
        repetition_penalty=sampling.repetition_penalty or 1.0,
        presence_penalty=sampling.presence_penalty or 0.0,
        frequency_penalty=sampling.frequency_penalty or 0.0,
        seed=None if chosen.greedy or sampling.seed is None else seed_of(sampling) & SEED_MASK,
        logprobs=0 if sampling.log_probs else None,
        stop_token_ids=[] if sampling.end_id is None else [sampling.end_id],
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    if sampling.bad_words:
        # vLLM's own field takes text and needs a tokenizer; the ids are what its sampler reads.
        params._bad_words_token_ids = [list(word) for word in sampling.bad_words]
    return params
