"""The sizes of a model that memory arithmetic needs, taken from its TensorRT-LLM config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import CheckpointError

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "int8": 1}


@dataclass(frozen=True)
class ModelShape:
    """Sizes in elements. `experts` is 0 for dense models; `gated` MLPs have three matrices, others two."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    max_positions: int | None
    experts: int = 0
    moe_intermediate: int = 0
    shared_intermediate: int = 0
    qkv_bias: bool = False
    dense_bias: bool = False
    qk_norm: bool = False
    embedding_cut: str = ""

    def kv_heads_per_rank(self, tp_size: int) -> int:
        """KV heads that each rank keeps; with fewer heads than ranks every rank keeps a copy of one."""
        return max(1, self.kv_heads // tp_size)

    def layers_per_stage(self, pp_size: int) -> int:
        """Layers of the largest pipeline stage: the first stages get one more when it does not divide."""
        return math.ceil(self.layers / pp_size)

    def kv_bytes_per_token(self, kv_bytes: int, *, tp_size: int = 1, pp_size: int = 1) -> int:
        """Bytes of KV cache that one token takes on the fullest rank: K and V of each layer."""
        per_layer = 2 * self.kv_heads_per_rank(tp_size) * self.head_size * kv_bytes
        return self.layers_per_stage(pp_size) * per_layer

    def rank_bytes(self, stage: int, *, bytes_each: int, tp_size: int, pp_size: int) -> int:
        """Bytes of weights of one rank in pipeline stage `stage`, as the checkpoint stores them."""
        extra = self.layers % pp_size
        layers = self.layers // pp_size + (1 if stage < extra else 0)
        total = layers * self._layer_bytes(bytes_each, tp_size)
        if stage == 0:
            total += self._embedding_elements(tp_size) * bytes_each
        if stage == pp_size - 1:
            total += (math.ceil(self.vocab / tp_size) * self.hidden + self.hidden) * bytes_each
        return total

    def _embedding_elements(self, tp_size: int) -> int:
        """Whole on every rank, or cut along the vocabulary ("rows") or the hidden size ("columns")."""
        if self.embedding_cut == "rows":
            return math.ceil(self.vocab / tp_size) * self.hidden
        return self.vocab * self.hidden // (tp_size if self.embedding_cut == "columns" else 1)

    def _layer_bytes(self, bytes_each: int, tp_size: int) -> int:
        elements = self._attention_elements(tp_size) + 2 * self.hidden
        if self.experts:
            router = self.experts * self.hidden * DTYPE_BYTES["float32"]
            return elements * bytes_each + self._moe_elements(tp_size) * bytes_each + router
        inner = self.intermediate // tp_size
        elements += 3 * self.hidden * inner + (2 * inner + self.hidden if self.dense_bias else 0)
        return elements * bytes_each

    def _attention_elements(self, tp_size: int) -> int:
        width = self.heads * self.head_size // tp_size
        rows = width + 2 * self.kv_heads_per_rank(tp_size) * self.head_size
        elements = rows * self.hidden + width * self.hidden
        elements += rows if self.qkv_bias else 0
        elements += self.hidden if self.dense_bias else 0
        return elements + (2 * self.head_size if self.qk_norm else 0)

    def _moe_elements(self, tp_size: int) -> int:
        elements = 3 * self.experts * self.hidden * self.moe_intermediate // tp_size
        if self.shared_intermediate:
            elements += 3 * self.hidden * self.shared_intermediate // tp_size + self.hidden
        return elements


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Read a TensorRT-LLM `config.json`, or a Hugging Face one that names its sizes the same way.

    Raises:
        CheckpointError: a size is missing.
    """
    try:
        return _read_shape(config)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json does not say the model's sizes: {error}.",
            hint="Use the config.json of the language model itself.",
            code="config_field_missing",
        ) from None


def _size(config: Mapping[str, Any], name: str) -> int:
    value = int(config[name])
    if value < 1:
        raise ValueError(f"{name} is {value}, not a size")
    return value


def _read_shape(config: Mapping[str, Any]) -> ModelShape:
    moe = config.get("moe") or {}
    experts = int(moe.get("num_experts") or 0)
    intermediate = _size(config, "intermediate_size")
    is_qwen1 = config.get("qwen_type") == "qwen"
    heads = _size(config, "num_attention_heads")
    hidden = _size(config, "hidden_size")
    return ModelShape(
        layers=_size(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_size") or config.get("head_dim") or hidden // heads),
        intermediate=intermediate // 2 if is_qwen1 else intermediate,
        vocab=_size(config, "vocab_size"),
        max_positions=config.get("max_position_embeddings"),
        experts=experts,
        moe_intermediate=int(config.get("moe_intermediate_size") or intermediate) if experts else 0,
        shared_intermediate=int(config.get("moe_shared_expert_intermediate_size") or 0) if experts else 0,
        qkv_bias=bool(config.get("attn_bias") or config.get("add_qkv_bias") or config.get("add_bias_linear")),
        dense_bias=bool(config.get("add_bias_linear")),
        qk_norm=bool(config.get("qk_layernorm")) or str(config.get("qwen_type", "")).startswith("qwen3"),
        embedding_cut=_embedding_cut(config),
    )


def _embedding_cut(config: Mapping[str, Any]) -> str:
    if not config.get("use_parallel_embedding"):
        return ""
    return "columns" if config.get("embedding_sharding_dim") == 1 else "rows"
