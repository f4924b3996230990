"""What a bridge finds beside it: its own files, and worker.json, which says which worker to start."""

from __future__ import annotations

import json
from typing import Any

from builder.pbtxt import TEMPLATES
from builder.repository_target import Target
from common.config import ModelConfig
from common.errors import ConfigError
from common.paths import SOURCE_ROOT

WORKER_FILE = "worker.json"


def worker_json(target: Target) -> bytes:
    config = target.config
    document = {
        "engine": config.engine,
        "python": None,
        "root": target.portable(SOURCE_ROOT),
        "package": target.portable(target.package.folder),
        "options": worker_options(target),
        "env": {},
    }
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()


def worker_options(target: Target) -> dict[str, Any]:
    """What the engine's adapter in worker/ accepts.

    Raises:
        ConfigError: the cpu engine cannot give each layer a window of its own.
    """
    config, layout = target.config, target.package.manifest.layout
    options: dict[str, Any] = {
        "max_batch_size": config.max_batch_size,
        "max_input_len": config.max_input_len,
        "max_output_len": config.max_output_len,
    }
    if config.engine == "cpu":
        cpu = {"precision": config.precision, "kv_cache_tokens": config.kv_cache_tokens, "threads": None}
        window = _single_window(config)
        return {**cpu, **options, **({"max_attention_window_size": window} if window else {})}
    return {
        **options,
        "dtype": layout.dtype,
        "tensor_parallel_size": layout.tp_size,
        "pipeline_parallel_size": layout.pp_size,
        **_kv_cache(config),
        **_adapters(config),
    }


def bridge_files(*, model_name: str = "model.py") -> dict[str, bytes]:
    """The bridge's files; `model_name` is what its model is called where another model drives it."""
    sources = [*sorted((TEMPLATES / "bridge").glob("*.py")), SOURCE_ROOT / "worker" / "protocol.py"]
    names = {source: model_name if source.name == "model.py" else source.name for source in sources}
    return {name: source.read_bytes() for source, name in names.items()}


def _adapters(config: ModelConfig) -> dict[str, str]:
    """The LoRA adapters of TensorRT-LLM's PyTorch runtime."""
    folder = config.triton.lora_prefetch_dir
    return {"lora_dir": folder} if folder and config.engine == "cuda-trt" else {}


def _kv_cache(config: ModelConfig) -> dict[str, Any]:
    """Its size where the config says it; else the package or the engine does.

    vLLM sizes its own by the fraction alone.
    """
    size: dict[str, Any] = {}
    if "kv_cache_free_gpu_mem_fraction" in config.triton.model_fields_set:
        size["gpu_memory_fraction"] = config.triton.kv_cache_free_gpu_mem_fraction
    tokens = config.triton.max_tokens_in_paged_kv_cache or config.kv_cache_tokens
    if tokens and config.engine != "cuda-vllm":
        size["kv_cache_tokens"] = tokens
    return size


def _single_window(config: ModelConfig) -> int | None:
    """The sliding window of the cpu engine, which has one for all layers."""
    windows = {int(size) for size in (config.triton.max_attention_window_size or "").split(",") if size}
    if len(windows) > 1:
        raise ConfigError(
            "The cpu engine cannot give each layer a window of its own.",
            why=f"max_attention_window_size is {config.triton.max_attention_window_size}.",
            hint="Give one window for all layers, or none.",
            code="window_per_layer",
        )
    return windows.pop() if windows else None
