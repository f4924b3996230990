"""Start the cuda-hf engine: the only module of it that the worker imports by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What is served lies on this machine; nothing is looked up elsewhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from packaging.specifiers import SpecifierSet
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig

from common.errors import EnvironmentProblem, UnsupportedModelError
from worker.checkpoint import checkpoint_folder
from worker.hf.adapter import HfAdapter
from worker.hf.batching import PAGE_SIZE, SUPPORTED, Batches
from worker.hf.options import EngineOptions
from worker.protocol import LOGIT_BIAS
from worker.validate import Limits

# Without a GPU, where memory does not say how large the KV cache may be.
CPU_PAGE_TOKENS = 32
CPU_KV_TOKENS = 16384
CPU_BATCH_TOKENS = 512


def load(package: Path, options: Mapping[str, Any]) -> HfAdapter:
    """Start transformers on the package's Hugging Face checkpoint, on the GPU if there is one.

    Raises:
        ConfigError: an option is wrong.
        EnvironmentProblem: another transformers than this adapter knows.
        CheckpointError: there is no Hugging Face checkpoint.
        UnsupportedModelError: transformers has no class of its own for the model.
        Exception: whatever PyTorch raises while it starts; the caller reports it.
    """
    settings = EngineOptions.parse(options)
    _check_version()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    model = _model(checkpoint_folder(package, settings.model, "transformers"), settings).to(device)
    batches = Batches(model, batching_config(settings, device))
    bounds = _limits(model.config.get_text_config(), settings, batches)
    ready = bounds.ready(
        "cuda-hf",
        max_batch_size=settings.max_batch_size,
        kv_cache_tokens=batches.kv_cache_tokens,
        kv_block_tokens=batches.page_tokens,
    )
    return HfAdapter(batches, ready, bounds)


def batching_config(options: EngineOptions, device: torch.device) -> ContinuousBatchingConfig:
    """On a GPU transformers sizes the cache by free memory; on the CPU that would be most of the RAM."""
    on_cpu = device.type == "cpu"
    page = CPU_PAGE_TOKENS if on_cpu else int(getattr(ContinuousBatchingConfig, PAGE_SIZE))
    kv_tokens = options.kv_cache_tokens or (CPU_KV_TOKENS if on_cpu else None)
    return ContinuousBatchingConfig(
        num_blocks=None if kv_tokens is None else max(-(-kv_tokens // page), 2),
        max_batch_tokens=options.max_batch_tokens or (CPU_BATCH_TOKENS if on_cpu else None),
        max_requests_per_batch=options.max_batch_size,
        max_memory_percent=options.gpu_memory_fraction,
        use_cuda_graph=False if on_cpu else options.cuda_graphs,
        # Penalties and bad words need the token before, so the next batch cannot be prepared ahead of it.
        use_async_batching=False,
        **{PAGE_SIZE: page},
    )


def _check_version() -> None:
    if not SpecifierSet(SUPPORTED).contains(transformers.__version__):
        raise EnvironmentProblem(
            f"The cuda-hf engine knows transformers {SUPPORTED}, not {transformers.__version__}.",
            why="It drives parts of transformers that change from release to release.",
            hint="Run ./ew setup --engine cuda-hf.",
            code="transformers_version",
        )


def _model(folder: Path, options: EngineOptions) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=options.dtype,
            attn_implementation=options.attention or "sdpa",
            local_files_only=True,
            trust_remote_code=False,
        )
    except ValueError as error:
        raise UnsupportedModelError(
            f"transformers cannot run the model in {folder} by itself.",
            why=str(error).splitlines()[0],
            hint="Use engine cuda-trt, cuda-vllm or cpu for it.",
            code="no_native_class",
        ) from error


def _limits(config: Any, options: EngineOptions, batches: Batches) -> Limits:
    # One page is left over, because the last page of a request may hold a single token.
    total = min(int(config.max_position_embeddings), batches.kv_cache_tokens - batches.page_tokens)
    return Limits(
        vocab_size=int(config.vocab_size),
        max_input_len=min(options.max_input_len or total, total - 1),
        max_output_len=min(options.max_output_len or total, total - 1),
        max_total_len=total,
        features=(LOGIT_BIAS,),
    )
