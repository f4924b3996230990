"""The tensors of the `tensorrt_llm` model: requests in, responses out.

Names, shapes and defaults are those of NVIDIA's C++ TensorRT-LLM backend.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from protocol import Sampling, Status

# Inputs that change the result and that no worker carries out; an empty tensor means "not given".
UNSUPPORTED_INPUTS = {
    "encoder_input_features": "encoder-decoder models",
    "encoder_output_lengths": "encoder-decoder models",
    "decoder_input_ids": "encoder-decoder models",
    "decoder_input_lengths": "encoder-decoder models",
    "cross_attention_mask": "encoder-decoder models",
    "skip_cross_attn_blocks": "encoder-decoder models",
    "draft_input_ids": "draft tokens",
    "draft_logits": "draft tokens",
    "lookahead_window_size": "lookahead decoding",
    "lookahead_ngram_size": "lookahead decoding",
    "lookahead_verification_set_size": "lookahead decoding",
    "prompt_embedding_table": "prompt embedding tables",
    "prompt_table_extra_ids": "prompt embedding tables",
    "prompt_vocab_size": "prompt embedding tables",
    "mrope_rotary_cos_sin": "multimodal rotary embeddings",
    "mrope_position_deltas": "multimodal rotary embeddings",
    "lora_weights": "LoRA adapters sent with a request",
    "lora_config": "LoRA adapters sent with a request",
    "context_phase_params": "disaggregated serving",
    "retention_token_range_starts": "KV cache retention",
    "retention_token_range_ends": "KV cache retention",
    "retention_token_range_priorities": "KV cache retention",
    "retention_token_range_durations_ms": "KV cache retention",
    "retention_decode_priority": "KV cache retention",
    "retention_decode_duration_ms": "KV cache retention",
}
# Inputs that change nothing as long as they have this value.
NEUTRAL_VALUES = {"beam_width": 1, "runtime_top_p_decay": 1.0}
UNSUPPORTED_WHEN_TRUE = ("return_context_logits", "return_generation_logits")
MAX_SEQUENCES = 64
SEED_MASK = (1 << 64) - 1


class BadRequest(Exception):
    """A request that is refused before any worker sees it."""

    def __init__(self, message: str, status: Status = Status.INVALID) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Prompt:
    """One row of a batch."""

    input_ids: array[int]
    sampling: Sampling

    def copy(self, sequence_index: int) -> Prompt:
        """The prompt for one of several answers: with a seed, each draws from its own."""
        seed = self.sampling.seed
        if seed is None or sequence_index == 0:
            return self
        return replace(self, sampling=replace(self.sampling, seed=(seed + sequence_index) & SEED_MASK))


@dataclass(frozen=True)
class Request:
    """One Triton request. The flags are those of its first row, as in the C++ backend."""

    prompts: tuple[Prompt, ...]
    num_return_sequences: int
    streaming: bool
    exclude_input: bool
    num_input_tokens: bool
    num_output_tokens: bool
    perf_metrics: bool

    @property
    def sequences(self) -> int:
        return len(self.prompts) * self.num_return_sequences


class Inputs:
    """Input tensors by name, one row of the batch at a time. Empty tensors count as not given."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = {name: tensor for name, tensor in tensors.items() if tensor.size}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> Set[str]:
        return self._tensors.keys()

    @property
    def batch_size(self) -> int:
        return len(self._tensors["input_ids"])

    def row(self, name: str, row: int) -> Any:
        """Row `row` of a tensor [batch, ...]."""
        tensor = self._tensors[name]
        if row >= len(tensor):
            raise BadRequest(f"{name} has {len(tensor)} rows; the batch has more.")
        return tensor[row]

    def scalar(self, name: str, row: int) -> Any:
        """The value of a [batch] or [batch, 1] tensor as a Python number, None when it is not given."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        if tensor.size == 1 and row == 0:  # a batch of one, as nearly every request is
            return tensor.item()
        value = np.ravel(self.row(name, row))
        if value.size != 1:
            raise BadRequest(f"{name} takes one value for each prompt; found {value.size}.")
        return value[0].item()

    def text(self, name: str, row: int) -> str | None:
        """The text of a [batch, 1] string tensor, None when it is not given."""
        if name not in self._tensors:
            return None
        values = np.ravel(self.row(name, row))
        if values.size != 1:
            raise BadRequest(f"{name} takes one text for each prompt; found {values.size}.")
        try:
            return bytes(values[0]).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRequest(f"{name} is not UTF-8: {error.reason} at byte {error.start}.") from error

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.scalar(name, 0)
        return default if value is None else bool(value)


def is_stop(inputs: Inputs) -> bool:
    return inputs.flag("stop")


def parse_request(inputs: Inputs, *, decoupled: bool, exclude_input: bool) -> Request:
    """The request in `inputs`.

    Args:
        decoupled: whether the model may send more than one response.
        exclude_input: the model's default for leaving the prompt out of output_ids.

    Raises:
        BadRequest: a tensor is missing, has a wrong shape or asks for what no worker can do.
    """
    _refuse_unsupported(inputs)
    for name in ("input_ids", "input_lengths", "request_output_len"):
        if name not in inputs:
            raise BadRequest(f"{name} is missing or empty.")
    streaming = inputs.flag("streaming")
    if streaming and not decoupled:
        raise BadRequest("streaming needs a decoupled model (model_transaction_policy).")
    batch = inputs.batch_size
    sequences = inputs.scalar("num_return_sequences", 0) or 1
    if not 1 <= sequences <= MAX_SEQUENCES:
        raise BadRequest(f"num_return_sequences is {sequences}; allowed is 1 to {MAX_SEQUENCES}.")
    if batch * sequences > 1 and not decoupled:
        raise BadRequest("Several prompts or sequences in one request need a decoupled model.")
    return Request(
        prompts=tuple(_parse_prompt(inputs, row) for row in range(batch)),
        num_return_sequences=sequences,
        streaming=streaming,
        exclude_input=inputs.flag("exclude_input_in_output", exclude_input),
        num_input_tokens=inputs.flag("return_num_input_tokens"),
        num_output_tokens=inputs.flag("return_num_output_tokens"),
        perf_metrics=inputs.flag("return_perf_metrics"),
    )


def _refuse_unsupported(inputs: Inputs) -> None:
    for name in UNSUPPORTED_INPUTS.keys() & inputs.names():
        feature = UNSUPPORTED_INPUTS[name]
        raise BadRequest(f"{name}: this engine does not support {feature}.", Status.UNSUPPORTED)
    for name, neutral in NEUTRAL_VALUES.items():
        value = inputs.scalar(name, 0)
        if value is not None and value != neutral:
            raise BadRequest(f"{name} is {value}; this engine supports {neutral} only.", Status.UNSUPPORTED)
    for name in UNSUPPORTED_WHEN_TRUE:
        if inputs.flag(name):
            raise BadRequest(f"{name}: this engine does not return logits.", Status.UNSUPPORTED)


def _parse_prompt(inputs: Inputs, row: int) -> Prompt:
    ids = np.ravel(inputs.row("input_ids", row))
    length = inputs.scalar("input_lengths", row)
    if not 1 <= length <= ids.size:
        raise BadRequest(f"input_lengths is {length}; input_ids holds {ids.size} tokens.")
    input_ids = array("i")
    input_ids.frombytes(np.ascontiguousarray(ids[:length], dtype=np.int32).tobytes())
    return Prompt(input_ids, _parse_sampling(inputs, row))


def _parse_sampling(inputs: Inputs, row: int) -> Sampling:
    end_id = inputs.scalar("end_id", row)
    return Sampling(
        max_tokens=inputs.scalar("request_output_len", row),
        min_tokens=inputs.scalar("min_tokens", row) or 0,
        end_id=None if end_id == -1 else end_id,
        temperature=inputs.scalar("temperature", row),
        top_k=inputs.scalar("runtime_top_k", row),
        top_p=inputs.scalar("runtime_top_p", row),
        repetition_penalty=inputs.scalar("repetition_penalty", row),
        presence_penalty=inputs.scalar("presence_penalty", row),
        frequency_penalty=inputs.scalar("frequency_penalty", row),
        seed=inputs.scalar("seed", row),
        stop_words=_parse_words(inputs, "stop_words_list", row),
        bad_words=_parse_words(inputs, "bad_words_list", row),
        log_probs=inputs.flag("return_log_probs"),
        guide_type=inputs.text("guided_decoding_guide_type", row),
        guide=inputs.text("guided_decoding_guide", row),
        token_bias=_parse_bias(inputs, row),
        lora_task_id=inputs.scalar("lora_task_id", row),
    )


def _parse_bias(inputs: Inputs, row: int) -> tuple[tuple[int, float], ...]:
    """The tokens whose entry in embedding_bias, [vocab], is not zero, and what is added to their logits."""
    if "embedding_bias" not in inputs:
        return ()
    bias = np.ravel(inputs.row("embedding_bias", row))
    tokens = np.flatnonzero(bias)
    return tuple(zip(tokens.tolist(), bias[tokens].tolist(), strict=True))


def _parse_words(inputs: Inputs, name: str, row: int) -> tuple[tuple[int, ...], ...]:
    """Token id sequences out of [2, n]: the ids one after the other, and where each word ends (-1 pads)."""
    if name not in inputs:
        return ()
    table = inputs.row(name, row)
    if table.ndim != 2 or len(table) != 2:
        raise BadRequest(f"{name} has shape {list(table.shape)}; allowed is [2, n]: ids, then word ends.")
    ids, ends = table.tolist()
    words, start = [], 0
    for end in ends:
        if end == -1:
            break
        if not start < end <= len(ids):
            raise BadRequest(f"{name} has a word end of {end}, but ends must rise from 1 to {len(ids)}.")
        words.append(tuple(ids[start:end]))
        start = end
    return tuple(words)
