"""Tensor names on the three sides of BLS: the client's, preprocessing's and the engine's."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb

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
            "prompt_embedding_table",
            "prompt_vocab_size",
            "lora_task_id",
            "lora_weights",
            "lora_config",
            "guided_decoding_guide_type",
            "guided_decoding_guide",
        )
    },
}

FORWARDED_OUTPUTS = (
    "cum_log_probs",
    "output_log_probs",
    "context_logits",
    "generation_logits",
    "batch_index",
    "sequence_index",
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
    "acceptance_rate",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
    "num_input_tokens",
    "num_output_tokens",
)


def preprocessing_inputs(request: Any) -> list[Any]:
    return list(_renamed(request, TO_PREPROCESSING))


def engine_inputs(request: Any, prepared: dict[str, Any]) -> list[Any]:
    """What preprocessing made and what the client sent for the engine itself."""
    made = [pb.Tensor(PREPROCESSED[name], value) for name, value in prepared.items()]
    return [*made, *_renamed(request, TO_ENGINE)]


def _renamed(request: Any, names: dict[str, str]) -> Any:
    for source, target in names.items():
        tensor = pb.get_input_tensor_by_name(request, source)
        if tensor is not None:
            values = tensor.as_numpy()
            # Inputs that this model declares as scalars arrive without their last dimension.
            yield pb.Tensor(target, values.reshape(-1, 1) if values.ndim == 1 else values)
