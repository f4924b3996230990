"""Fields of a TensorRT-LLM checkpoint's config.json that families share, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.families.layout import STORED_NAMES, Layout
from common.errors import CheckpointError

Config = dict[str, Any]
HfConfig = Mapping[str, Any]


def required(hf: HfConfig, name: str) -> int:
    """A size without which nothing can be converted."""
    if hf.get(name) is None:
        raise CheckpointError(
            f"config.json has no {name!r}.",
            why="The size of the model cannot be known without it.",
            hint="Use the config.json that was published with the weights.",
            code="config_field_missing",
        )
    return _size(name, hf[name])


def _size(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"{name} is {value!r} in config.json; it must be a whole number from 1.",
            hint="Use the config.json that was published with the weights.",
            code="config_field_wrong",
        )
    return value


def given(hf: HfConfig, name: str, default: Any) -> Any:
    """A field, or its default where it is absent or null."""
    value = hf.get(name)
    return default if value is None else value


def resolve_dtype(hf: HfConfig, layout: Layout) -> str:
    """The checkpoint's dtype; `auto` follows the model, except that float32 and unknown become float16."""
    if layout.dtype != "auto":
        return layout.dtype
    own = str(hf.get("torch_dtype") or hf.get("dtype") or "float16").removeprefix("torch.")
    return "float16" if own == "float32" or own not in STORED_NAMES else own


def rope(hf: HfConfig, *, add_rope_type: bool) -> tuple[Any, Config | None]:
    """Base and scaling of the rotary embedding, from the fields of transformers 4 or 5."""
    both = dict(hf.get("rope_parameters") or {})
    base = both.pop("rope_theta", None) or given(hf, "rope_theta", 10000.0)
    scaling = hf.get("rope_scaling") or (both if both.get("rope_type", "default") != "default" else None)
    if not scaling:
        return base, None
    scaling = dict(scaling)
    if add_rope_type and "type" in scaling:
        scaling["rope_type"] = scaling["type"]
    return base, scaling


def _head_size(hf: HfConfig) -> int:
    heads, hidden = required(hf, "num_attention_heads"), required(hf, "hidden_size")
    own = hf.get("kv_channels") or hf.get("head_dim")
    return _size("head_dim", own) if own else _size("hidden_size / num_attention_heads", hidden // heads)


def kv_heads(hf: HfConfig) -> int:
    heads = required(hf, "num_attention_heads")
    return _size("num_key_value_heads", given(hf, "num_key_value_heads", heads))


def _mapping(layout: Layout) -> Config:
    moe_tp, moe_ep = layout.moe_sizes
    return {
        "world_size": layout.world_size,
        "gpus_per_node": 8,
        "cp_size": 1,
        "tp_size": layout.tp_size,
        "pp_size": layout.pp_size,
        "moe_tp_size": moe_tp,
        "moe_cluster_size": 1,
        "moe_ep_size": moe_ep,
        "attn_tp_size": layout.tp_size,
        "attn_cp_size": 1,
        "cp_config": {},
        "enable_attention_dp": False,
        "enable_lm_head_tp_in_adp": False,
    }


QUANTIZATION: Config = {
    "quant_algo": None,
    "kv_cache_quant_algo": None,
    "group_size": 128,
    "smoothquant_val": 0.5,
    "clamp_val": None,
    "use_meta_recipe": False,
    "has_zero_point": False,
    "pre_quant_scale": False,
    "exclude_modules": None,
    "mamba_ssm_cache_dtype": None,
}


def moe(experts: int, top_k: int, normalization: int | None, shared: int = 0) -> Config:
    return {
        "num_experts": experts,
        "shared_expert_intermediate_size": shared,
        "top_k": top_k,
        "normalization_mode": normalization,
        "sparse_mixer_epsilon": 0.01,
        "tp_mode": 0,
        "device_limited_n_group": 0,
        "device_limited_topk_group": 0,
        "device_limited_routed_scaling_factor": 1.0,
    }


def common_fields(hf: HfConfig, layout: Layout, **own: Any) -> Config:
    """Fields of every family of the common loader; `own` overrides."""
    head_size = own.pop("head_size", None) or _head_size(hf)
    fields: Config = {
        "architecture": hf["architectures"][0],
        "dtype": resolve_dtype(hf, layout),
        "vocab_size": own.pop("vocab_size", None) or required(hf, "vocab_size"),
        "hidden_size": required(hf, "hidden_size"),
        "num_hidden_layers": own.pop("num_hidden_layers", None) or required(hf, "num_hidden_layers"),
        "num_attention_heads": required(hf, "num_attention_heads"),
        "hidden_act": given(hf, "hidden_act", "silu"),
        "logits_dtype": "float32",
        "norm_epsilon": own.pop("norm_epsilon", None) or given(hf, "rms_norm_eps", 1e-06),
        "runtime_defaults": None,
        "position_embedding_type": "rope_gpt_neox",
        "num_key_value_heads": own.pop("num_key_value_heads", None) or kv_heads(hf),
        "intermediate_size": own.pop("intermediate_size", None) or required(hf, "intermediate_size"),
        "max_position_embeddings": hf.get("max_position_embeddings"),
        "mapping": _mapping(layout),
        "quantization": dict(QUANTIZATION),
        "use_parallel_embedding": layout.use_parallel_embedding,
        "embedding_sharding_dim": layout.embedding_sharding_dim,
        "head_size": head_size,
        "qk_layernorm": False,
        "rotary_embedding_dim": head_size,
    }
    return {**fields, **own}
