"""Tensor names on the three sides of BLS: the client's, preprocessing's and the engine's."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from engine_calls import EngineError

# client's input -> preprocessing's
TO_PREPROCESSING = {
    "text_input": "QUERY",
    "decoder_text_input": "DECODER_QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS",
    "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
    "prompt_table_extra_id": "PROMPT_TABLE_EXTRA_ID",
    "stream": "STREAM",
}

# preprocessing's output -> the engine's input
PREPROCESSED = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "DECODER_INPUT_ID": "decoder_input_ids",
    "REQUEST_DECODER_INPUT_LEN": "decoder_input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "STOP_WORDS_IDS": "stop_words_list",
    "BAD_WORDS_IDS": "bad_words_list",
    "EMBEDDING_BIAS": "embedding_bias",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "OUT_PROMPT_TABLE_EXTRA_IDS": "prompt_table_extra_ids",
}

# client's input -> the engine's
TO_ENGINE = {
    "stream": "streaming",
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
    **{
        name: name
        for name in (
            "temperature",
            "repetition_penalty",
            "min_tokens",
            "presence_penalty",
            "frequency_penalty",
            "seed",
            "beam_width",
            "num_return_sequences",
            "exclude_input_in_output",
            "return_log_probs",
            "return_context_logits",
            "return_generation_logits",
            "return_perf_metrics",
            "return_num_input_tokens",
            "return_num_output_tokens",
            "lora_task_id",
            "guided_decoding_guide_type",
            "guided_decoding_guide",
        )
    },
}

# Two dimensions of free length cannot be written as a flat list of JSON.
NOT_CARRIED = ("prompt_embedding_table", "prompt_vocab_size", "lora_weights", "lora_config")

# engine's output -> type, and its shape without the last dimension
FORWARDED_OUTPUTS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "cum_log_probs": (np.float32, (1,)),
    "output_log_probs": (np.float32, (1, 1)),
    "kv_cache_alloc_new_blocks": (np.int32, (1,)),
    "kv_cache_reused_blocks": (np.int32, (1,)),
    "kv_cache_alloc_total_blocks": (np.int32, (1,)),
    "arrival_time_ns": (np.int64, (1,)),
    "first_scheduled_time_ns": (np.int64, (1,)),
    "first_token_time_ns": (np.int64, (1,)),
    "last_token_time_ns": (np.int64, (1,)),
    "acceptance_rate": (np.float32, (1,)),
    "total_accepted_draft_tokens": (np.int32, (1,)),
    "total_draft_tokens": (np.int32, (1,)),
    "num_input_tokens": (np.int32, (1,)),
    "num_output_tokens": (np.int32, (1,)),
}


def preprocessing_inputs(request: Any) -> list[Any]:
    inputs = []
    for source, target in TO_PREPROCESSING.items():
        tensor = pb.get_input_tensor_by_name(request, source)
        if tensor is not None:
            inputs.append(pb.Tensor(target, tensor.as_numpy()))
    return inputs


def engine_inputs(request: Any, prepared: dict[str, Any]) -> dict[str, Any]:
    """What preprocessing made and what the client sent for the engine itself, as generate_stream takes it.

    Raises:
        EngineError: several prompts or beams, or an input that this model cannot hand on.
    """
    _refuse_others(request, prepared)
    inputs = {PREPROCESSED[name]: _as_json(value) for name, value in prepared.items()}
    for source, target in TO_ENGINE.items():
        tensor = pb.get_input_tensor_by_name(request, source)
        if tensor is not None:
            inputs[target] = _as_json(tensor.as_numpy())
    return inputs


def forwarded_outputs(document: dict[str, Any]) -> list[Any]:
    tensors = []
    for name, (kind, shape) in FORWARDED_OUTPUTS.items():
        if name in document:
            tensors.append(pb.Tensor(name, np.array(document[name], dtype=kind).reshape(*shape, -1)))
    return tensors


def _refuse_others(request: Any, prepared: dict[str, Any]) -> None:
    for name in NOT_CARRIED:
        if pb.get_input_tensor_by_name(request, name) is not None:
            raise EngineError(f"{name} cannot be sent through this model; use the ensemble.")
    for name in ("beam_width", "num_return_sequences"):
        tensor = pb.get_input_tensor_by_name(request, name)
        if tensor is not None and int(tensor.as_numpy().reshape(-1)[0]) != 1:
            raise EngineError(f"{name} must be 1 here: this model serves one sequence a request.")
    if len(prepared["INPUT_ID"]) != 1:
        raise EngineError("This model takes one prompt a request.")


def _as_json(values: Any) -> Any:
    """A tensor's values: one alone, more as a flat list."""
    if values.dtype == object:
        flat = [value.decode() for value in values.reshape(-1)]
    else:
        flat = values.reshape(-1).tolist()
    return flat[0] if len(flat) == 1 else flat
