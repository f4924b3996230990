"""The forms of upstream that are more than other names: the llmapi text model, and vLLM's own backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from builder.package import LLM_ARGS
from builder.repository_target import Target, version_numbers
from builder.repository_text import (
    CHAT,
    DECODING,
    STOPS,
    TOKENIZER_FILES,
    prompt_parameters,
    python_model,
    tokenizer_files,
)
from builder.repository_worker import WORKER_FILE, bridge_files, worker_json

MODEL_YAML = "model.yaml"
VLLM_ARGUMENTS = "model.json"
PROMPTS = "preprocessing/prompts.py"
WITH_LORA_AND_IMAGES = (1, 3)  # inputs that upstream's llmapi model has since then


def llmapi_variables(target: Target) -> dict[str, Any]:
    return {"has_lora_and_images": version_numbers(target.trtllm_version) >= WITH_LORA_AND_IMAGES}


def llmapi_parameters(target: Target) -> dict[str, Any]:
    """What ew's model reads; upstream's has no parameters and does not mind them."""
    settings = target.config.triton
    return {
        "tokenizer_dir": "tokenizer",
        "add_special_tokens": settings.add_special_tokens,
        "skip_special_tokens": settings.skip_special_tokens,
        **prompt_parameters(target),
        "max_queue_size": settings.max_queue_size,
    }


def llmapi_files(target: Target) -> dict[str, bytes]:
    """ew's text model over its bridge; for PyTorch packages also model.yaml, for upstream's own model.py."""
    arguments = _llm_arguments(target)
    code = python_model("llmapi", (*DECODING, *CHAT, *STOPS), PROMPTS)
    return {
        **bridge_files(model_name="bridge.py"),
        **code,
        **tokenizer_files(target.package, TOKENIZER_FILES),
        WORKER_FILE: worker_json(target),
        **({MODEL_YAML: _model_yaml(arguments)} if arguments else {}),
    }


def vllm_files(target: Target) -> dict[str, bytes]:
    """model.json: the arguments of vLLM's engine, under vLLM's names."""
    config = target.config
    known = _llm_arguments(target)
    arguments = {
        "model": known.get("model") or _source(target),
        **({"revision": known["revision"]} if known.get("revision") else {}),
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "max_num_seqs": config.max_batch_size,
        "max_model_len": config.max_input_len + config.max_output_len,
        "gpu_memory_utilization": config.triton.kv_cache_free_gpu_mem_fraction,
        "enable_prefix_caching": config.triton.enable_kv_cache_reuse,
    }
    return {VLLM_ARGUMENTS: (json.dumps(arguments, ensure_ascii=False, indent=2) + "\n").encode()}


def _llm_arguments(target: Target) -> dict[str, Any]:
    """The package's arguments of tensorrt_llm.LLM, its model found from anywhere; {} where it has none."""
    path = target.package.folder / LLM_ARGS
    if not path.is_file():
        return {}
    arguments: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    beside = target.package.folder / str(arguments["model"])
    return {**arguments, "model": str(beside.resolve()) if beside.is_dir() else arguments["model"]}


def _source(target: Target) -> str:
    """The Hugging Face checkpoint that the package was made from: its folder, else its hub id."""
    source = target.package.manifest.source
    return source.path if source.path and Path(source.path).is_dir() else source.model


def _model_yaml(arguments: dict[str, Any]) -> bytes:
    document = {
        **arguments,
        "backend": "pytorch",
        "triton_config": {"max_batch_size": 0, "decoupled": True},
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode()
