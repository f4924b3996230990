from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import pytest

from worker.protocol import GUIDED_DECODING, LOGIT_BIAS, GenerationRequest, Sampling, Status
from worker.validate import Limits, RequestRefused, check_request

FEATURES = (GUIDED_DECODING, LOGIT_BIAS)
LIMITS = Limits(vocab_size=100, max_input_len=20, max_output_len=30, max_total_len=40, features=FEATURES)
GOOD = Sampling(max_tokens=10)
REGEX = {"guide_type": "regex", "end_id": 2}
SCHEMA = {"guide_type": "json_schema", "end_id": 2}


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
        {"token_bias": ((99, -1.5), (0, float("-inf")))},
        {"guide_type": "json", "end_id": 2},
        {"guide_type": "json_schema", "guide": '{"type": "object"}', "end_id": 2},
        {"guide_type": "regex", "guide": "(" * 64 + ")" * 64, "end_id": 2},
        {"guide_type": "ebnf_grammar", "guide": "x" * (64 << 10), "end_id": 2},
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
        ([1], {"token_bias": ((100, 1.0),)}, "token_out_of_range", "embedding_bias holds 100"),
        ([1], {"token_bias": ((5, float("nan")),)}, "parameter_out_of_range", "embedding_bias of token 5"),
        ([1], {"token_bias": ((5, float("inf")),)}, "parameter_out_of_range", "finite number, or -inf"),
        ([1], {"guide": "a"}, "guide_invalid", "needs guided_decoding_guide_type"),
        ([1], {"guide_type": "yaml", "end_id": 2}, "guide_invalid", "allowed are json, json_schema"),
        ([1], {"guide_type": "json"}, "guide_invalid", "needs end_id"),
        ([1], {"guide_type": "regex", "end_id": 2}, "guide_invalid", "has 0 characters"),
        ([1], {**REGEX, "guide": "x" * ((64 << 10) + 1)}, "guide_invalid", "allowed are 1 to 65536"),
        ([1], {**REGEX, "guide": "[(" * 33 + ")]" * 33}, "guide_invalid", "deeper than 64"),
        ([1], {**SCHEMA, "guide": "{"}, "guide_invalid", "is not JSON"),
        ([1], {**SCHEMA, "guide": '{"minimum": NaN}'}, "guide_invalid", "no NaN in JSON"),
    ],
)
def test_everything_else_is_refused_by_name(
    tokens: list[int], changes: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(RequestRefused) as refused:
        check(tokens, **changes)
    assert refused.value.code == code
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guide_type": "json", "end_id": 2}, "does not support guided decoding"),
        ({"token_bias": ((5, -1.0),)}, "does not support an embedding bias"),
    ],
)
def test_what_an_engine_does_not_have_is_unsupported(changes: dict[str, Any], words: str) -> None:
    request = GenerationRequest(1, array("i", [1]), replace(GOOD, **changes))
    with pytest.raises(RequestRefused, match=words) as refused:
        check_request(request, replace(LIMITS, features=()))
    assert refused.value.status == Status.UNSUPPORTED
