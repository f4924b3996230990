"""The parameters of `tensorrt_llm`, as NVIDIA's backend has them."""

from __future__ import annotations

from typing import Any

from builder.repository_target import Target, model_path

EXECUTOR_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"

# Parameters of tensorrt_llm in the order of the backend's own template. A name stands for the setting.
PARAMETER_ORDER = (
    "max_beam_width",
    "FORCE_CPU_ONLY_INPUT_TENSORS",
    "gpt_model_type",
    "gpt_model_path",
    "encoder_model_path",
    "max_tokens_in_paged_kv_cache",
    "max_attention_window_size",
    "sink_token_length",
    "batch_scheduler_policy",
    "kv_cache_free_gpu_mem_fraction",
    "cross_kv_cache_fraction",
    "kv_cache_host_memory_bytes",
    "kv_cache_onboard_blocks",
    "enable_trt_overlap",
    "exclude_input_in_output",
    "cancellation_check_period_ms",
    "stats_check_period_ms",
    "iter_stats_max_iterations",
    "request_stats_max_iterations",
    "enable_kv_cache_reuse",
    "normalize_log_probs",
    "enable_chunked_context",
    "gpu_device_ids",
    "participant_ids",
    "num_nodes",
    "lora_cache_optimal_adapter_size",
    "lora_cache_max_adapter_size",
    "lora_cache_gpu_memory_fraction",
    "lora_cache_host_memory_bytes",
    "lora_prefetch_dir",
    "decoding_mode",
    "executor_worker_path",
    "lookahead_window_size",
    "lookahead_ngram_size",
    "lookahead_verification_set_size",
    "medusa_choices",
    "eagle_choices",
    "gpu_weights_percent",
    "enable_context_fmha_fp32_acc",
    "multi_block_mode",
    "cuda_graph_mode",
    "cuda_graph_cache_size",
    "speculative_decoding_fast_logits",
    "tokenizer_dir",
    "guided_decoding_backend",
    "xgrammar_tokenizer_info_path",
)


def engine_parameters(target: Target) -> dict[str, Any]:
    """Every parameter of the backend's own template, in its order.

    Raises:
        PackageError: the engine was not built yet.
    """
    fixed = {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_path": str(model_path(target)),
        "encoder_model_path": None,
        "executor_worker_path": EXECUTOR_WORKER,
        "tokenizer_dir": None,
    }
    values = {**target.config.triton.model_dump(), **fixed}
    skipped = ("enable_trt_overlap",) if target.is_older_backend else ()
    return {key: values[key] for key in PARAMETER_ORDER if key not in skipped}
