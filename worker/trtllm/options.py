"""Options of the cuda-trt engine, and the arguments of tensorrt_llm.LLM that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import PackageError
from worker.running import given_options


@dataclass(frozen=True)
class EngineOptions:
    """The `options` of worker.json; they win over the package's llm_args.json. None means: as it says.

    `lora_dir` is a folder of adapters, see worker.trtllm.lora.
    `llm_args` are further arguments of tensorrt_llm.LLM and win over all others.
    """

    model: str | None = None
    dtype: str | None = None
    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_output_len: int | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    gpu_memory_fraction: float | None = None
    kv_cache_tokens: int | None = None
    lora_dir: str | None = None
    llm_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> EngineOptions:
        """Raises ConfigError for an unknown option."""
        return cls(**given_options(cls, "cuda-trt", document))

    @property
    def max_seq_len(self) -> int | None:
        if self.max_input_len and self.max_output_len:
            return self.max_input_len + self.max_output_len
        return None


def llm_arguments(package: Path, options: EngineOptions) -> dict[str, Any]:
    """What tensorrt_llm.LLM is called with. Text is made elsewhere, so it needs no tokenizer.

    Raises:
        PackageError: the package has no arguments for it, or they are not readable.
    """
    made = _read_arguments(package)
    settings = {
        "model": options.model,
        "dtype": options.dtype,
        "max_batch_size": options.max_batch_size,
        "max_input_len": options.max_input_len,
        "max_seq_len": options.max_seq_len,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
    }
    arguments = made | {name: value for name, value in settings.items() if value is not None}
    arguments |= {"skip_tokenizer_init": True, "trust_remote_code": False}
    arguments.setdefault("enable_iter_perf_stats", True)  # they say how full the KV cache is
    cache = {"free_gpu_memory_fraction": options.gpu_memory_fraction, "max_tokens": options.kv_cache_tokens}
    given = {name: value for name, value in cache.items() if value is not None}
    arguments["kv_cache_config"] = {**arguments.get("kv_cache_config", {}), **given}
    arguments["model"] = _model(package, str(arguments["model"]))
    return arguments | dict(options.llm_args)


def _read_arguments(package: Path) -> dict[str, Any]:
    path = package / "llm_args.json"
    try:
        arguments = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(arguments, dict) or "model" not in arguments:
            raise ValueError("it names no model")
        return arguments
    except (OSError, ValueError) as error:
        raise PackageError(
            f"{path} does not say what to load.",
            why=str(error),
            hint="Convert for the PyTorch runtime: ./ew convert-trt --runtime pytorch.",
            code="llm_args_missing",
        ) from error


def _model(package: Path, model: str) -> str:
    """A folder beside or in the package by its path, anything else (a hub's id) as it is."""
    folder = package / model
    return str(folder) if folder.is_dir() else model
