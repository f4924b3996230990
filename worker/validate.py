"""Every request is checked here before an engine sees it, so that no request can hurt another."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from common.errors import UsageError
from worker.protocol import (
    GUIDE_TYPES,
    GUIDED_DECODING,
    LOGIT_BIAS,
    LORA,
    GenerationRequest,
    Ready,
    Sampling,
    Status,
)

MAX_PENALTY = 2.0
MAX_TEMPERATURE = 100.0
MAX_GUIDE_CHARACTERS = 64 << 10
# Grammar compilers recurse; thousands of brackets inside each other end the process.
MAX_GUIDE_DEPTH = 64


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, in tokens. `max_total_len` is prompt and answer together.

    `features` are those of the protocol that the engine has.
    """

    vocab_size: int
    max_input_len: int
    max_output_len: int
    max_total_len: int
    features: tuple[str, ...] = ()

    def ready(self, engine: str, *, max_batch_size: int, kv_cache_tokens: int, kv_block_tokens: int) -> Ready:
        """What the bridge is told of an engine with these limits."""
        return Ready(
            engine=engine,
            vocab_size=self.vocab_size,
            max_batch_size=max_batch_size,
            max_input_len=self.max_input_len,
            max_output_len=self.max_output_len,
            kv_cache_tokens=kv_cache_tokens,
            kv_block_tokens=kv_block_tokens,
            features=self.features,
        )


class RequestRefused(UsageError):
    """A request that the engine must not see; `status` becomes Triton's error code."""

    default_code = "request_invalid"

    def __init__(self, message: str, *, status: Status = Status.INVALID, code: str = "") -> None:
        super().__init__(message, code=code)
        self.status = status


def check_request(request: GenerationRequest, limits: Limits) -> None:
    """Raise RequestRefused unless an engine with these limits can run the request."""
    _check_prompt(request, limits)
    _check_lengths(request, limits)
    _check_sampling(request.sampling)
    _check_words(request.sampling, limits.vocab_size)
    _check_bias(request.sampling, limits)
    _check_guide(request.sampling, limits)
    if request.sampling.lora_task_id is not None and LORA not in limits.features:
        raise _missing_feature("lora_task_id", "LoRA adapters")


def _check_prompt(request: GenerationRequest, limits: Limits) -> None:
    if not request.input_ids:
        raise RequestRefused("input_ids is empty: a prompt needs at least one token.", code="prompt_empty")
    lowest, highest = min(request.input_ids), max(request.input_ids)
    if lowest < 0 or highest >= limits.vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise RequestRefused(
            f"input_ids holds {wrong}; this model's token ids are 0 to {limits.vocab_size - 1}.",
            code="token_out_of_range",
        )


def _check_lengths(request: GenerationRequest, limits: Limits) -> None:
    prompt, answer = len(request.input_ids), request.sampling.max_tokens
    if prompt > limits.max_input_len:
        raise RequestRefused(
            f"The prompt has {prompt} tokens; max_input_len is {limits.max_input_len}.",
            code="prompt_too_long",
        )
    if not 1 <= answer <= limits.max_output_len:
        raise RequestRefused(
            f"request_output_len is {answer}; allowed is 1 to {limits.max_output_len} (max_output_len).",
            code="output_len_out_of_range",
        )
    if prompt + answer > limits.max_total_len:
        raise RequestRefused(
            f"The prompt ({prompt}) and request_output_len ({answer}) come to {prompt + answer} tokens; "
            f"the model and its KV cache hold {limits.max_total_len}.",
            code="request_too_long",
        )
    if not 0 <= request.sampling.min_tokens <= answer:
        raise RequestRefused(
            f"min_tokens is {request.sampling.min_tokens}; allowed is 0 to request_output_len ({answer}).",
            code="min_tokens_out_of_range",
        )


def _check_sampling(sampling: Sampling) -> None:
    _check_range("temperature", sampling.temperature, 0.0, MAX_TEMPERATURE)
    _check_range("runtime_top_p", sampling.top_p, -math.inf, 1.0)
    _check_range("runtime_top_k", sampling.top_k, 0, math.inf)
    _check_range("presence_penalty", sampling.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
    _check_range("frequency_penalty", sampling.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
    penalty = sampling.repetition_penalty
    if penalty is not None and not 0.0 < penalty < math.inf:
        raise _out_of_range("repetition_penalty", penalty, "a number above 0")


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and (math.isnan(value) or math.isinf(value) or not low <= value <= high):
        allowed = f"at most {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"
        raise _out_of_range(name, value, allowed if math.isfinite(high) else f"{low:g} or more")


def _out_of_range(name: str, value: float, allowed: str) -> RequestRefused:
    return RequestRefused(f"{name} is {value:g}; allowed is {allowed}.", code="parameter_out_of_range")


def _check_words(sampling: Sampling, vocab_size: int) -> None:
    _check_ids("stop_words_list", (token for word in sampling.stop_words for token in word), vocab_size)
    _check_ids("bad_words_list", (token for word in sampling.bad_words for token in word), vocab_size)
    if sampling.end_id is not None:
        _check_ids("end_id", (sampling.end_id,), vocab_size)


def _check_ids(name: str, tokens: Iterable[int], vocab_size: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise RequestRefused(
                f"{name} holds {token}; this model's token ids are 0 to {vocab_size - 1}.",
                code="token_out_of_range",
            )


def _check_bias(sampling: Sampling, limits: Limits) -> None:
    if not sampling.token_bias:
        return
    if LOGIT_BIAS not in limits.features:
        raise _missing_feature("embedding_bias", "an embedding bias")
    _check_ids("embedding_bias", (token for token, _ in sampling.token_bias), limits.vocab_size)
    for token, bias in sampling.token_bias:
        if not bias < math.inf:  # a NaN too
            raise _out_of_range(f"embedding_bias of token {token}", bias, "a finite number, or -inf")


def _check_guide(sampling: Sampling, limits: Limits) -> None:
    kind, guide = sampling.guide_type, sampling.guide or ""
    if kind is None:
        if guide:
            raise _guide_refused("guided_decoding_guide needs guided_decoding_guide_type beside it.")
        return
    if GUIDED_DECODING not in limits.features:
        raise _missing_feature("guided_decoding_guide_type", "guided decoding")
    if kind not in GUIDE_TYPES:
        allowed = ", ".join(GUIDE_TYPES)
        raise _guide_refused(f"guided_decoding_guide_type is {kind!r}; allowed are {allowed}.")
    if sampling.end_id is None:
        raise _guide_refused("Guided decoding needs end_id: it is how an answer ends.")
    if kind != "json":
        _check_guide_text(kind, guide)


def _check_guide_text(kind: str, guide: str) -> None:
    if not 1 <= len(guide) <= MAX_GUIDE_CHARACTERS:
        raise _guide_refused(
            f"guided_decoding_guide has {len(guide)} characters; allowed are 1 to {MAX_GUIDE_CHARACTERS}."
        )
    if _depth(guide) > MAX_GUIDE_DEPTH:
        raise _guide_refused(f"guided_decoding_guide nests deeper than {MAX_GUIDE_DEPTH} brackets.")
    if kind == "json_schema":
        try:
            json.loads(guide, parse_constant=_no_json)
        except ValueError as error:
            raise _guide_refused(f"guided_decoding_guide is not JSON: {error}.") from error


def _no_json(name: str) -> float:
    raise ValueError(f"there is no {name} in JSON")


def _depth(guide: str) -> int:
    """How many brackets are open at most; one that stands for itself counts like any other."""
    depth = deepest = 0
    for character in guide:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(depth - 1, 0)
    return deepest


def _guide_refused(message: str) -> RequestRefused:
    return RequestRefused(message, code="guide_invalid")


def _missing_feature(name: str, feature: str) -> RequestRefused:
    return RequestRefused(
        f"{name}: this engine does not support {feature}.",
        status=Status.UNSUPPORTED,
        code="feature_missing",
    )
