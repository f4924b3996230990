"""Options of the cuda-vllm engine, and vLLM's arguments that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker import checkpoint
from worker.running import given_options


@dataclass(frozen=True)
class EngineOptions:
    """The `options` of worker.json. None means: vLLM's own default.

    `model` is a Hugging Face checkpoint folder; without it the package says where it came from.
    `engine_args` are further arguments of vLLM's EngineArgs and win over all others.
    """

    model: str | None = None
    dtype: str = "auto"
    max_batch_size: int = 256
    max_input_len: int | None = None
    max_output_len: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_fraction: float = 0.9
    engine_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> EngineOptions:
        """Raises ConfigError for an unknown option."""
        return cls(**given_options(cls, "cuda-vllm", document))

    @property
    def max_model_len(self) -> int | None:
        if self.max_input_len and self.max_output_len:
            return self.max_input_len + self.max_output_len
        return None


def engine_arguments(options: EngineOptions, model: Path, *, tokenizer: bool) -> dict[str, Any]:
    """What EngineArgs is called with. Text is made elsewhere; `tokenizer` is for guided decoding only."""
    arguments: dict[str, Any] = {
        "model": str(model),
        "skip_tokenizer_init": not tokenizer,
        "dtype": options.dtype,
        "max_num_seqs": options.max_batch_size,
        "max_model_len": options.max_model_len,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "gpu_memory_utilization": options.gpu_memory_fraction,
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "disable_log_stats": False,  # its own statistics say how full the KV cache is
        "trust_remote_code": False,
    }
    return arguments | dict(options.engine_args)


def checkpoint_folder(package: Path, options: EngineOptions) -> Path:
    """See worker.checkpoint."""
    return checkpoint.checkpoint_folder(package, options.model, "vLLM")
