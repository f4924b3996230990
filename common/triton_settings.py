"""`models.ID.triton` of deploy/config.json: everything about a model's Triton configuration that can be set.

Names are the parameter names of the TensorRT-LLM backend. A setting left at null is written empty, which
makes the backend use its own default.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Logits = Literal["FP32", "FP16"]
HalfOrFull = Literal["FP16", "BF16", "FP32"]
DecodingMode = Literal[
    "top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle"
]
INT_LIST = r"^\d+(,\d+)*$"
INT_LISTS = r"^\d+(,\d+)*(;\d+(,\d+)*)*$"
TREE = r"^\{\d+(, ?\d+)*\}(, ?\{\d+(, ?\d+)*\})*$"


class TritonSettings(BaseModel):
    """Settings of the rendered models; sizes in tokens, bytes or milliseconds as their names say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Triton's own scheduling
    max_queue_size: int = Field(
        1024, ge=0, description="Requests that may wait; more are refused. 0: no limit."
    )
    max_queue_delay_microseconds: int = Field(0, ge=0, description="How long Triton waits to fill a batch.")
    preprocessing_instance_count: int = Field(
        1, ge=1, le=64, description="Processes that tokenize; one serves thousands of requests a second."
    )
    bls_instance_count: int = Field(
        1, ge=1, le=64, description="Processes of the BLS model; each serves many requests at once."
    )
    bls: bool = Field(True, description="Also write M-tensorrt_llm_bls, the business-logic model.")

    # Text
    add_special_tokens: bool = Field(
        True, description="Add BOS to raw prompts, as the tokenizer does; never twice."
    )
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")
    apply_chat_template: bool = Field(
        False, description="Treat the ensemble's text_input as a chat turn unless the request says otherwise."
    )
    truncation: Literal["error", "left", "right"] = Field(
        "error",
        description="A prompt over max_input_len: refuse it, or keep its end (left) or its start (right).",
    )
    accumulate_tokens: bool = Field(
        False, description="BLS: each streamed text is the whole answer so far, not what is new."
    )

    # Engine: batching and scheduling
    gpt_model_type: Literal["inflight_fused_batching", "inflight_batching"] = Field(
        "inflight_fused_batching", description="Batching in flight; static batching no longer loads."
    )
    batch_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = Field(
        "guaranteed_no_evict", description="Never pause a running request, or fill the GPU and pause some."
    )
    max_beam_width: int = Field(
        1, ge=1, description="Beams a request; streaming needs 1, and all must use the same."
    )
    enable_chunked_context: bool = Field(
        False, description="Split long prompts into chunks; the engine needs use_paged_context_fmha."
    )
    decoding_mode: DecodingMode | None = Field(
        None, description="How tokens are chosen; by max_beam_width when not set."
    )
    enable_trt_overlap: bool = Field(False, description="Deprecated by TensorRT-LLM; leave it off.")
    normalize_log_probs: bool = Field(True, description="Divide cumulative log probabilities by length.")
    exclude_input_in_output: bool = Field(True, description="Answers without the prompt.")

    # Engine: KV cache
    kv_cache_free_gpu_mem_fraction: float = Field(
        0.9, gt=0.0, le=1.0, description="Share of the GPU memory left after loading that the KV cache takes."
    )
    max_tokens_in_paged_kv_cache: int | None = Field(
        None, ge=1, description="Cap of the KV cache in tokens; the smaller of this and the fraction wins."
    )
    enable_kv_cache_reuse: bool = Field(True, description="Share the cache of equal prompt beginnings.")
    kv_cache_host_memory_bytes: int = Field(0, ge=0, description="Host memory that cold cache moves to.")
    kv_cache_onboard_blocks: bool = Field(True, description="Bring cache back from host memory; internal.")
    max_attention_window_size: str | None = Field(
        None, pattern=INT_LIST, description="Sliding window, or a comma list, one a layer."
    )
    sink_token_length: int | None = Field(None, ge=0, description="First tokens that a window always keeps.")
    cross_kv_cache_fraction: float | None = Field(
        None, ge=0.0, le=1.0, description="Share of the KV cache for cross attention; encoder-decoder only."
    )

    # Engine: devices
    gpu_device_ids: str | None = Field(
        None, pattern=INT_LISTS, description="GPUs, comma inside an instance, semicolon between: 0,1;2,3."
    )
    participant_ids: str | None = Field(
        None, pattern=INT_LISTS, description="MPI ranks, written like gpu_device_ids; orchestrator mode only."
    )
    num_nodes: int = Field(1, ge=1, description="Machines that share the model over MPI.")
    gpu_weights_percent: float = Field(
        1.0, ge=0.0, le=1.0, description="Share of the weights kept on the GPU; the rest is streamed."
    )

    # Engine: kernels
    enable_context_fmha_fp32_acc: bool = Field(False, description="Accumulate attention in FP32.")
    multi_block_mode: bool = Field(True, description="Split long attention over several blocks.")
    cuda_graph_mode: bool = Field(False, description="Record CUDA graphs of generation steps.")
    cuda_graph_cache_size: int = Field(0, ge=0, description="CUDA graphs kept.")

    # Speculative decoding
    lookahead_window_size: int | None = Field(None, ge=1, description="Lookahead: window.")
    lookahead_ngram_size: int | None = Field(None, ge=1, description="Lookahead: n-gram length.")
    lookahead_verification_set_size: int | None = Field(
        None, ge=1, description="Lookahead: candidates checked."
    )
    medusa_choices: str | None = Field(None, pattern=TREE, description="Medusa tree: {0}, {0, 0}, {1}.")
    eagle_choices: str | None = Field(None, pattern=TREE, description="Eagle tree, written like Medusa's.")
    speculative_decoding_fast_logits: bool = Field(
        False, description="Hand draft logits over directly; orchestrator mode without spawning only."
    )

    # LoRA
    lora_cache_optimal_adapter_size: int = Field(8, ge=1, description="Adapter rank that fills a page.")
    lora_cache_max_adapter_size: int = Field(64, ge=1, description="Largest adapter rank.")
    lora_cache_gpu_memory_fraction: float = Field(
        0.05, ge=0.0, le=1.0, description="Share of the free GPU memory for adapters."
    )
    lora_cache_host_memory_bytes: int = Field(2**30, ge=0, description="Host memory for adapters.")
    lora_prefetch_dir: str | None = Field(None, description="Folder of adapters that are loaded at start.")

    # Guided decoding
    guided_decoding_backend: Literal["xgrammar"] | None = Field(None, description="Turns guided decoding on.")
    xgrammar_tokenizer_info_path: str | None = Field(
        None, description="JSON file that xgrammar reads; needed for guided decoding."
    )

    # Tensor types; they must agree with the engine
    logits_datatype: Logits = Field("FP32", description="Type of context and generation logits.")
    encoder_input_features_data_type: HalfOrFull = Field("FP16", description="Type of encoder features.")
    prompt_embedding_table_data_type: HalfOrFull = Field("FP16", description="Type of prompt embeddings.")

    # Monitoring and housekeeping
    cancellation_check_period_ms: int = Field(
        100, ge=1, description="How often cancelled requests are looked for."
    )
    stats_check_period_ms: int = Field(100, ge=1, description="How often metrics are collected.")
    iter_stats_max_iterations: int | None = Field(None, ge=0, description="Iterations kept in statistics.")
    request_stats_max_iterations: int | None = Field(
        None, ge=0, description="Iterations kept in request statistics."
    )

    @model_validator(mode="after")
    def _parts_belong_together(self) -> TritonSettings:
        lookahead = ("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size")
        missing = [name for name in lookahead if getattr(self, name) is None]
        if self.decoding_mode == "lookahead" and missing:
            raise ValueError(f"decoding_mode lookahead needs {', '.join(missing)} too")
        if 0 < len(missing) < len(lookahead):
            raise ValueError(f"{', '.join(missing)} must be set together with the other lookahead sizes")
        if self.guided_decoding_backend and not self.xgrammar_tokenizer_info_path:
            raise ValueError("guided_decoding_backend needs xgrammar_tokenizer_info_path too")
        if self.decoding_mode == "beam_search" and self.max_beam_width == 1:
            raise ValueError("decoding_mode beam_search needs a max_beam_width over 1")
        return self
