from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import pytest

from worker.protocol import GenerationRequest, Sampling
from worker.validate import Limits, RequestRefused, check_request

LIMITS = Limits(vocab_size=100, max_input_len=20, max_output_len=30, max_total_len=40)
GOOD = Sampling(max_tokens=10)


def check(tokens: list[int], **changes: Any) -> None:
    check_request(GenerationRequest(1, array("i", tokens), replace(GOOD, **changes)), LIMITS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_tokens": 30, "min_tokens": 30},
        {"temperature": 0.0, "top_k": 0, "top_p": 1.0},
        {"top_p": -1.0},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0, "repetition_penalty": 0.1},
        {"end_id": 99, "stop_words": ((0, 99),), "bad_words": ((5,),)},
        {"seed": 2**64 - 1},
    ],
)
def test_what_the_engine_can_run_passes(changes: dict[str, Any]) -> None:
    check([0, 99], **changes)


def test_prompt_and_answer_may_fill_the_cache_exactly() -> None:
    check([1] * 20, max_tokens=20)


@pytest.mark.parametrize(
    ("tokens", "changes", "code", "words"),
    [
        ([], {}, "prompt_empty", "input_ids is empty"),
        ([-1], {}, "token_out_of_range", "-1"),
        ([5, 100], {}, "token_out_of_range", "0 to 99"),
        ([1] * 21, {}, "prompt_too_long", "max_input_len is 20"),
        ([1], {"max_tokens": 0}, "output_len_out_of_range", "request_output_len is 0"),
        ([1], {"max_tokens": 31}, "output_len_out_of_range", "1 to 30"),
        ([1] * 20, {"max_tokens": 21}, "request_too_long", "41 tokens"),
        ([1], {"min_tokens": 11}, "min_tokens_out_of_range", "min_tokens is 11"),
        ([1], {"min_tokens": -1}, "min_tokens_out_of_range", "min_tokens is -1"),
        ([1], {"temperature": -0.1}, "parameter_out_of_range", "temperature is -0.1"),
        ([1], {"temperature": float("nan")}, "parameter_out_of_range", "temperature"),
        ([1], {"temperature": float("inf")}, "parameter_out_of_range", "temperature"),
        ([1], {"top_p": 1.01}, "parameter_out_of_range", "runtime_top_p is 1.01; allowed is at most 1"),
        ([1], {"top_k": -1}, "parameter_out_of_range", "runtime_top_k is -1; allowed is 0 or more"),
        ([1], {"presence_penalty": 2.5}, "parameter_out_of_range", "presence_penalty is 2.5"),
        ([1], {"frequency_penalty": -3.0}, "parameter_out_of_range", "-2 to 2"),
        ([1], {"repetition_penalty": 0.0}, "parameter_out_of_range", "repetition_penalty is 0"),
        ([1], {"end_id": 100}, "token_out_of_range", "end_id holds 100"),
        ([1], {"stop_words": ((1, -5),)}, "token_out_of_range", "stop_words_list holds -5"),
        ([1], {"bad_words": ((100,),)}, "token_out_of_range", "bad_words_list holds 100"),
    ],
)
def test_everything_else_is_refused_by_name(
    tokens: list[int], changes: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(RequestRefused) as refused:
        check(tokens, **changes)
    assert refused.value.code == code
    assert words in str(refused.value)
