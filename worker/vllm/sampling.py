"""Sampling parameters in vLLM's form."""

from __future__ import annotations

from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

from worker.choice import choice, seed_of
from worker.protocol import Sampling

SEED_MASK = (1 << 63) - 1
# Takes a token out of the running in every precision; vLLM's kernels need not know infinity.
LEAST_BIAS = -1e9
GUIDE_FIELDS = {"json_schema": "json", "regex": "regex", "ebnf_grammar": "grammar"}


def sampling_params(sampling: Sampling, guide_end: int | None = None) -> Any:
    """vLLM's SamplingParams; single-token ends are the engine's, longer stop words are watched outside.

    Args:
        guide_end: the token that vLLM lets end a guided answer.

    Raises:
        ValueError: vLLM does not accept a value, or its grammar compiler a guide.
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
        stop_token_ids=sorted(end_ids(sampling, guide_end)),
        logit_bias={token: max(bias, LEAST_BIAS) for token, bias in sampling.token_bias} or None,
        structured_outputs=_structured_outputs(sampling),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    if sampling.bad_words:
        # vLLM's own field takes text and needs a tokenizer; the ids are what its sampler reads.
        params._bad_words_token_ids = [list(word) for word in sampling.bad_words]
    if sampling.guide_type is not None:
        validate_xgrammar_grammar(params)
        # vLLM's own front end, which is left out here, makes this choice.
        params.structured_outputs._backend = "xgrammar"
    return params


def end_ids(sampling: Sampling, guide_end: int | None) -> frozenset[int]:
    """The tokens that end an answer and are no part of it."""
    ends = {sampling.end_id, guide_end if sampling.guide_type is not None else None}
    return frozenset(end for end in ends if end is not None)


def _structured_outputs(sampling: Sampling) -> Any:
    if sampling.guide_type is None:
        return None
    if sampling.guide_type == "json":
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(**{GUIDE_FIELDS[sampling.guide_type]: sampling.guide})
