"""Hugging Face checkpoints that are already quantized: recognise the scheme and say where it can run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import CheckpointError

QUANT_CONFIG = "hf_quant_config.json"


@dataclass(frozen=True)
class PreQuantized:
    """A scheme found in a checkpoint; `algorithm` is TensorRT-LLM's name where it has one."""

    algorithm: str
    kv_cache: str | None
    producer: str
    reason: str


def find_quantization(folder: Path, config: dict[str, Any]) -> PreQuantized | None:
    """The quantization of a checkpoint, from hf_quant_config.json or config.json, or None."""
    path = folder / QUANT_CONFIG
    if path.is_file():
        return _from_modelopt(path)
    declared = config.get("quantization_config")
    return _from_config(declared) if declared else None


def _from_modelopt(path: Path) -> PreQuantized | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        quantization = document["quantization"]
        algorithm = quantization.get("quant_algo")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a ModelOpt quantization file.",
            why=str(error),
            hint="Download it again, or export the model again with --export_fmt hf.",
            code="quant_config_unreadable",
        ) from None
    if algorithm is None and quantization.get("kv_cache_quant_algo") is None:
        return None
    producer = document.get("producer") or {}
    return PreQuantized(
        algorithm="FP8_BLOCK_SCALES" if algorithm == "fp8_pb_wo" else str(algorithm),
        kv_cache=quantization.get("kv_cache_quant_algo"),
        producer=str(producer.get("name", "modelopt")),
        reason=f"{QUANT_CONFIG} says quant_algo {algorithm}",
    )


def _from_config(declared: dict[str, Any]) -> PreQuantized:
    method = str(declared.get("quant_method", "unknown"))
    bits = declared.get("bits")
    names = {
        ("awq", 4): "W4A16_AWQ",
        ("gptq", 4): "W4A16_GPTQ",
        ("gptq", 8): "W8A16_GPTQ",
        ("fbgemm_fp8", None): "FP8_PER_CHANNEL_PER_TOKEN",
        ("fp8", None): "FP8_BLOCK_SCALES" if declared.get("weight_block_size") else "FP8",
        ("modelopt", None): str(declared.get("quant_algo", "modelopt")),
    }
    algorithm = names.get(
        (method, bits), names.get((method, None), method if bits is None else f"{method}-{bits}bit")
    )
    shown = method if bits is None else f"{method} with {bits} bits"
    return PreQuantized(algorithm, None, method, f"quantization_config of config.json says {shown}")
