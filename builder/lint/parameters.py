"""The parameters of the TensorRT-LLM backend: what kind of value each one takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

BOOLEANS = ("True", "true", "TRUE", "1", "False", "false", "FALSE", "0")
LOOKAHEAD = ("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size")
# Read without a guard; an empty value is enough for all but the first.
UNGUARDED = ("gpt_model_type", "tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend")


@dataclass(frozen=True)
class Kind:
    """A kind of value; `accepts` gets a text that is not empty."""

    described: str
    accepts: Callable[[str], bool]


def _pattern(text: str) -> Callable[[str], bool]:
    return lambda value: re.fullmatch(text, value) is not None


def _between(low: float, high: float) -> Callable[[str], bool]:
    def accepts(value: str) -> bool:
        try:
            return low <= float(value) <= high
        except ValueError:
            return False

    return accepts


def _one_of(*values: str) -> Kind:
    return Kind(f"one of {', '.join(values)}", lambda value: value in values)


COUNT = Kind("a whole number of 0 or more", _pattern(r"\d+"))
POSITIVE = Kind("a whole number of 1 or more", _pattern(r"0*[1-9]\d*"))
FRACTION = Kind("a number from 0 to 1", _between(0.0, 1.0))
BOOLEAN = Kind(f"one of {', '.join(BOOLEANS)}", lambda value: value in BOOLEANS)
COUNTS = Kind("whole numbers, separated by commas", _pattern(r"\d+(,\d+)*"))
COUNT_LISTS = Kind("lists of whole numbers such as 0,1;2,3", _pattern(r"\d+(,\d+)*(;\d+(,\d+)*)*"))
TREE = Kind("a tree such as {0}, {0, 0}, {1}", _pattern(r"\{\d+(, ?\d+)*\}(, ?\{\d+(, ?\d+)*\})*"))
ANYTHING = Kind("any text", lambda value: True)

KINDS: dict[str, Kind] = {
    "max_beam_width": POSITIVE,
    "FORCE_CPU_ONLY_INPUT_TENSORS": _one_of("no", "yes"),
    "gpt_model_type": _one_of("inflight_fused_batching", "inflight_batching", "V1", "v1"),
    "gpt_model_path": ANYTHING,
    "encoder_model_path": ANYTHING,
    "max_tokens_in_paged_kv_cache": POSITIVE,
    "max_attention_window_size": COUNTS,
    "sink_token_length": COUNT,
    "batch_scheduler_policy": _one_of("max_utilization", "guaranteed_no_evict"),
    "kv_cache_free_gpu_mem_fraction": FRACTION,
    "cross_kv_cache_fraction": FRACTION,
    "kv_cache_host_memory_bytes": COUNT,
    "kv_cache_onboard_blocks": BOOLEAN,
    "enable_trt_overlap": BOOLEAN,
    "exclude_input_in_output": BOOLEAN,
    "cancellation_check_period_ms": POSITIVE,
    "stats_check_period_ms": POSITIVE,
    "recv_poll_period_ms": COUNT,
    "iter_stats_max_iterations": COUNT,
    "request_stats_max_iterations": COUNT,
    "enable_kv_cache_reuse": BOOLEAN,
    "normalize_log_probs": BOOLEAN,
    "enable_chunked_context": BOOLEAN,
    "gpu_device_ids": COUNT_LISTS,
    "participant_ids": COUNT_LISTS,
    "num_nodes": POSITIVE,
    "lora_cache_optimal_adapter_size": POSITIVE,
    "lora_cache_max_adapter_size": POSITIVE,
    "lora_cache_gpu_memory_fraction": FRACTION,
    "lora_cache_host_memory_bytes": COUNT,
    "lora_prefetch_dir": ANYTHING,
    "decoding_mode": _one_of(
        "top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle"
    ),
    "executor_worker_path": ANYTHING,
    **dict.fromkeys(LOOKAHEAD, POSITIVE),
    "medusa_choices": TREE,
    "eagle_choices": TREE,
    "gpu_weights_percent": FRACTION,
    "enable_context_fmha_fp32_acc": BOOLEAN,
    "multi_block_mode": BOOLEAN,
    "cuda_graph_mode": BOOLEAN,
    "cuda_graph_cache_size": COUNT,
    "speculative_decoding_fast_logits": BOOLEAN,
    "tokenizer_dir": ANYTHING,
    "guided_decoding_backend": _one_of("xgrammar"),
    "xgrammar_tokenizer_info_path": ANYTHING,
}
