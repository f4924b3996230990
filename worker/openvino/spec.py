"""What a TRT-LLM checkpoint's config.json says about the model, reduced to what the graph needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, UnsupportedModelError

_ROTARY_POSITIONS = {"rope_gpt_neox": False, "rope_gptj": True}
_ARCHITECTURES = frozenset(
    {
        "BaichuanForCausalLM",
        "ChatGLMForCausalLM",
        "ChatGLMForConditionalGeneration",
        "ChatGLMModel",
        "InternLM2ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "QWenForCausalLM",
        "QWenLMHeadModel",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "YiForCausalLM",
    }
)
_REQUIRED = ("architecture", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# Fields that change the arithmetic, with the only value the graph computes.
_FIXED_FIELDS: Mapping[str, object] = {
    "apply_residual_connection_post_layernorm": False,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "fc_after_embed": False,
    "output_multiplier_scale": 1.0,
    "residual_mlp": False,
    "residual_multiplier": 1.0,
    "rmsnorm": True,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
}
_GATED_SILU = ("silu", "swiglu")


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding: `dim` leading channels of each head turn with `base` and `scaling`."""

    dim: int
    base: float
    interleaved: bool
    scaling: Mapping[str, Any]
    max_positions: int | None

    @property
    def kind(self) -> str:
        """default, linear, dynamic, llama3, yarn or longrope."""
        kind = self.scaling.get("rope_type") or self.scaling.get("type") or "default"
        return "longrope" if kind == "su" else str(kind)

    @property
    def original_positions(self) -> int | None:
        """The context length before it was stretched."""
        return self.scaling.get("original_max_position_embeddings") or self.max_positions

    @property
    def factor(self) -> float:
        """How many times the context was stretched."""
        if self.scaling.get("factor") is not None:
            return float(self.scaling["factor"])
        return (self.max_positions or 1) / (self.original_positions or 1)


@dataclass(frozen=True)
class Experts:
    """Mixture of experts: `count` experts, `top_k` of them a token, weights renormalised or not."""

    count: int
    top_k: int
    renormalize: bool


@dataclass(frozen=True)
class Ranks:
    """How the checkpoint is cut into rank files; `embedding_dim` is None for a replicated embedding."""

    tp: int
    pp: int
    expert_tp: int
    embedding_dim: int | None


@dataclass(frozen=True)
class ModelSpec:
    """The model as the graph builder sees it.

    `rotary` is None for ALiBi models. `logn_length` is the length from which Qwen1 scales its queries
    by a logarithm. `max_context` is the largest prompt plus output, in tokens, that comes out as the
    original model computes it.
    """

    architecture: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    norm_epsilon: float
    max_context: int | None
    rotary: Rotary | None
    experts: Experts | None
    logn_length: int | None
    tied_embeddings: bool
    ranks: Ranks


def read_config(checkpoint: Path) -> ModelSpec:
    """Read `checkpoint`/config.json.

    Raises:
        CheckpointError: the folder is not a TRT-LLM checkpoint.
        UnsupportedModelError: the cpu engine cannot compute this model; the message names the field.
    """
    config = _load(checkpoint)
    _refuse_unsupported(config)
    rotary = _rotary(config)
    return ModelSpec(
        architecture=config["architecture"],
        layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_size=_head_size(config),
        vocab_size=config["vocab_size"],
        norm_epsilon=config.get("norm_epsilon", 1e-5),
        max_context=_max_context(config, rotary),
        rotary=rotary,
        experts=_experts(config.get("moe") or {}),
        logn_length=config["seq_length"] if config.get("use_logn_attn") else None,
        tied_embeddings=bool(config.get("tie_word_embeddings")),
        ranks=_ranks(config),
    )


def _load(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read.",
            why=str(error),
            hint="Make the checkpoint again with `ew convert-trt`.",
        ) from error
    missing = [name for name in _REQUIRED if not isinstance(config, dict) or name not in config]
    if missing:
        raise CheckpointError(
            f"{path} is not the config.json of a TRT-LLM checkpoint.",
            why=f"It has no {', '.join(missing)}.",
            hint="Name the checkpoint folder that `ew convert-trt` wrote, not the Hugging Face folder.",
        )
    return config


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config["architecture"] not in _ARCHITECTURES:
        raise _unsupported(config, f"The cpu engine has no graph for architecture {config['architecture']}.")
    for name, expected in _FIXED_FIELDS.items():
        if config.get(name, expected) != expected:
            raise _unsupported(config, f"{name} is {config[name]}; the cpu engine computes {expected} only.")
    if config.get("hidden_act", "silu") not in _GATED_SILU:
        raise _unsupported(
            config, f"hidden_act is {config['hidden_act']}; the cpu engine computes SiLU only."
        )
    quantization = config.get("quantization") or {}
    for name in ("quant_algo", "kv_cache_quant_algo"):
        if quantization.get(name):
            raise _unsupported(config, f"The checkpoint is quantized ({name} {quantization[name]}).")


def _unsupported(config: Mapping[str, Any], why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The cpu engine cannot run this {config['architecture']} checkpoint.",
        why=why,
        hint="Serve it with the cuda-trt engine, or convert a model of a family in docs/support-matrix.md.",
    )


def _head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_size") or config["hidden_size"] // config["num_attention_heads"])


def _rotary(config: Mapping[str, Any]) -> Rotary | None:
    position = config.get("position_embedding_type", "learned_absolute")
    if position == "alibi":
        return None
    if position not in _ROTARY_POSITIONS:
        raise _unsupported(config, f"Its position_embedding_type is {position}.")
    head_size = _head_size(config)
    # rotary_embedding_dim stays at head_size in ChatGLM checkpoints, where rotary_pct says 0.5.
    share = config.get("rotary_pct")
    dim = int(head_size * share) if share else config.get("rotary_embedding_dim") or head_size
    rotary = Rotary(
        dim=dim,
        base=float(config.get("rotary_base") or 10000.0),
        interleaved=_ROTARY_POSITIONS[position],
        scaling=config.get("rotary_scaling") or {},
        max_positions=config.get("max_position_embeddings"),
    )
    if rotary.kind not in ("default", "linear", "dynamic", "llama3", "yarn", "longrope"):
        raise _unsupported(config, f"Its rotary_scaling is of type {rotary.kind}.")
    return rotary


def _max_context(config: Mapping[str, Any], rotary: Rotary | None) -> int | None:
    """longrope changes tables where the original length ends; the graph holds the short one only."""
    if rotary is not None and rotary.kind == "longrope":
        return rotary.original_positions
    positions: int | None = config.get("max_position_embeddings")
    return positions


def _experts(moe: Mapping[str, Any]) -> Experts | None:
    if not moe.get("num_experts"):
        return None
    return Experts(moe["num_experts"], moe["top_k"], moe.get("normalization_mode") == 1)


def _ranks(config: Mapping[str, Any]) -> Ranks:
    mapping = config.get("mapping") or {}
    tp = mapping.get("tp_size", 1)
    sharding_dim = config.get("embedding_sharding_dim", 0) if config.get("use_parallel_embedding") else None
    # -1 stands for "not set" in upstream's mapping.
    expert_tp = mapping.get("moe_tp_size", -1)
    return Ranks(tp, mapping.get("pp_size", 1), expert_tp if expert_tp > 0 else tp, sharding_dim)
