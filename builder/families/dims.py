"""The sizes of a model, read from the config.json of a TensorRT-LLM checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dims:
    """Sizes and switches that decide which tensors there are and how large.

    Weight maps name these by attribute. Sizes are of the whole model, before any split.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    experts: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    qkv_bias: bool = False
    dense_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    normalised_head: bool = False
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0

    @property
    def query(self) -> int:
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def fused_qkv(self) -> int:
        return self.query + 2 * self.key

    @property
    def two_intermediate(self) -> int:
        return 2 * self.intermediate

    @property
    def one(self) -> int:
        return 1


def read_dims(config: Mapping[str, Any]) -> Dims:
    """Dims of a checkpoint with this config.json, whichever family it is."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    moe = config.get("moe") or {}
    experts = moe.get("num_experts", 0)
    bias = bool(config.get("attn_bias", False))
    is_qwen = "qwen_type" in config
    linear_bias = bool(config.get("add_bias_linear", False))
    return Dims(
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_size=config.get("head_size") or hidden // heads,
        intermediate=config["intermediate_size"] // (2 if config.get("qwen_type") == "qwen" else 1),
        vocab=config["vocab_size"],
        experts=experts,
        expert_intermediate=(config.get("moe_intermediate_size") or config["intermediate_size"])
        if experts
        else 0,
        shared_intermediate=config.get("moe_shared_expert_intermediate_size", 0),
        qkv_bias=bias or linear_bias or bool(config.get("add_qkv_bias", False)),
        dense_bias=(bias and not is_qwen) or linear_bias,
        mlp_bias=linear_bias,
        tied=bool(config.get("tie_word_embeddings", False)),
        normalised_head=str(config.get("model_version", "")).startswith("v2"),
        use_parallel_embedding=config["use_parallel_embedding"],
        embedding_sharding_dim=config["embedding_sharding_dim"],
    )
