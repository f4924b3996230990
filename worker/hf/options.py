"""Options of the cuda-hf engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError
from worker.running import given_options

ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")


@dataclass(frozen=True)
class EngineOptions:
    """The `options` of worker.json. None means: from the model, the machine, or transformers' own choice.

    `model` is a Hugging Face checkpoint folder; without it the package says where it came from.
    `gpu_memory_fraction` is the share of the memory left beside the weights that the KV cache may take;
    `kv_cache_tokens` sets its size instead. `max_batch_tokens` are computed in one step, prompts included.
    `threads` are those of PyTorch on the CPU.
    """

    model: str | None = None
    dtype: str = "auto"
    max_batch_size: int = 256
    max_input_len: int | None = None
    max_output_len: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_fraction: float = 0.8
    kv_cache_tokens: int | None = None
    max_batch_tokens: int | None = None
    attention: str | None = None
    cuda_graphs: bool | None = None
    threads: int | None = None

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> EngineOptions:
        """Raises ConfigError for an unknown option, or for one that this engine cannot carry out."""
        options = cls(**given_options(cls, "cuda-hf", document))
        if options.tensor_parallel_size * options.pipeline_parallel_size != 1:
            raise ConfigError(
                "The cuda-hf engine runs on one GPU.",
                hint="Set tensor_parallel_size and pipeline_parallel_size to 1, or use engine cuda-vllm.",
                code="one_gpu_only",
            )
        if options.attention not in (None, *ATTENTION):
            raise _invalid(f"attention is {options.attention!r}; allowed are {', '.join(ATTENTION)}")
        if not 0 < options.gpu_memory_fraction < 1:
            raise _invalid(f"gpu_memory_fraction is {options.gpu_memory_fraction}; allowed is 0 to 1")
        return options


def _invalid(problem: str) -> ConfigError:
    return ConfigError(
        f"The cuda-hf engine's options are not valid: {problem}.",
        hint="Correct deploy/config.json and render the model repository again.",
        code="worker_options_invalid",
    )
