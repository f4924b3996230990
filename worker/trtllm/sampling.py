"""Sampling parameters in TensorRT-LLM's form."""

from __future__ import annotations

from typing import Any

from tensorrt_llm import SamplingParams

from worker.choice import choice, seed_of
from worker.protocol import GenerationRequest
from worker.trtllm.restrictions import restrictions

SEED_MASK = (1 << 63) - 1


def sampling_params(request: GenerationRequest) -> Any:
    """SamplingParams of a request. Stop words are watched outside, where their tokens stay in the answer.

    Raises:
        ValueError: TensorRT-LLM does not accept a value.
    """
    sampling = request.sampling
    chosen = choice(sampling)
    drawn = {
        "temperature": chosen.temperature,
        "top_k": chosen.top_k or None,
        "top_p": chosen.top_p,
        # Without one, TensorRT-LLM would draw the same numbers for every request.
        "seed": seed_of(sampling) & SEED_MASK,
    }
    end_id = sampling.end_id
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        # An id is needed where there is no tokenizer to ask, also when it is to be ignored.
        end_id=0 if end_id is None else end_id,
        pad_id=0 if end_id is None else end_id,
        ignore_eos=end_id is None,
        logprobs=1 if sampling.log_probs else None,
        logits_processor=restrictions(sampling, len(request.input_ids)),
        detokenize=False,
        add_special_tokens=False,
        **({"top_k": 1} if chosen.greedy else drawn),
    )
