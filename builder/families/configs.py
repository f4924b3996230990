"""config.json of the TensorRT-LLM checkpoint, from config.json of the Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from builder.families.config_fields import (
    Config,
    HfConfig,
    common_fields,
    given,
    kv_heads,
    moe,
    required,
    resolve_dtype,
    rope,
)
from builder.families.layout import Layout
from common.errors import UnsupportedModelError

# What transformers takes where a published config.json leaves a field out.
DEFAULTS: Mapping[str, Config] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072},
    "mixtral": {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768},
    "qwen2_moe": {
        "num_key_value_heads": 16,
        "max_position_embeddings": 32768,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128},
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
}
ROUND_VOCABULARY = 100
BAICHUAN1_VOCABULARY, BAICHUAN2_VOCABULARY = 64000, 125696
GLM4_VOCABULARY, GLM4_EPSILON = 151552, 1.5625e-07


def llama_config(hf: HfConfig, layout: Layout, version: str) -> Config:
    """Llama, Yi, Mistral and Mixtral."""
    hf = {**DEFAULTS[version], **hf}
    if hf.get("mlp_bias"):
        raise UnsupportedModelError(
            "mlp_bias is true.",
            why="TensorRT-LLM's Llama has no biases in the MLP, so the output would be wrong.",
            hint="Serve this model with the PyTorch runtime: --runtime pytorch",
        )
    base, scaling = rope(hf, add_rope_type=version == "llama")
    experts = required(hf, "num_local_experts") if version == "mixtral" else 0
    own: Config = {"hidden_act": "swiglu"} if experts else {}
    top_k = given(hf, "num_experts_per_tok", 2) if experts else 0
    return {
        "mlp_bias": False,
        "attn_bias": bool(hf.get("bias") or hf.get("attention_bias")),
        "rotary_base": base,
        "rotary_scaling": scaling,
        "residual_mlp": False,
        "disable_weight_only_quant_plugin": False,
        "moe": moe(experts, top_k, 1 if experts else None),
        "remove_duplicated_kv_heads": False,
        "fc_after_embed": False,
        "use_input_layernorm_in_first_layer": True,
        "use_last_layernorm": True,
        "layer_idx_offset": 0,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "output_multiplier_scale": 1.0,
        "has_partial_lora_mask": False,
        **common_fields(hf, layout, **own),
        "tie_word_embeddings": bool(hf.get("tie_word_embeddings", False)),
    }


def _check_sparse_everywhere(hf: HfConfig) -> None:
    if hf.get("mlp_only_layers") or given(hf, "decoder_sparse_step", 1) != 1:
        raise UnsupportedModelError(
            "Some layers of this mixture of experts are dense.",
            why="mlp_only_layers or decoder_sparse_step says so; no published Qwen checkpoint does that.",
            hint="Serve this model with the PyTorch runtime: --runtime pytorch",
        )


def qwen_config(hf: HfConfig, layout: Layout, version: str) -> Config:
    """Qwen 1 to 3, dense and mixture of experts; `version` is the qwen_type."""
    hf = {**DEFAULTS.get(version, {}), **hf}
    is_first, has_experts = version == "qwen", version.endswith("_moe")
    own: Config = {}
    if is_first:
        base, scaling = given(hf, "rotary_emb_base", 10000.0), None
        own = {"norm_epsilon": given(hf, "layer_norm_epsilon", 1e-06)}
        own["num_key_value_heads"] = required(hf, "num_attention_heads")
    else:
        base, scaling = rope(hf, add_rope_type=True)
    experts, shared = 0, 0
    if has_experts:
        _check_sparse_everywhere(hf)
        experts, shared = required(hf, "num_experts"), given(hf, "shared_expert_intermediate_size", 0)
        own["hidden_act"] = "swiglu"
    renormalise = int(has_experts and bool(hf.get("norm_topk_prob")))
    return {
        "mlp_bias": False,
        "attn_bias": not version.startswith("qwen3"),
        "rotary_base": base,
        "rotary_scaling": scaling,
        "disable_weight_only_quant_plugin": False,
        "num_labels": 1,
        "use_logn_attn": bool(hf.get("use_logn_attn", False)),
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "moe": moe(experts, given(hf, "num_experts_per_tok", 0) if experts else 0, renormalise, shared),
        **common_fields(hf, layout, **own),
        "seq_length": given(hf, "seq_length", 8192),
        "qwen_type": version,
        "moe_intermediate_size": required(hf, "moe_intermediate_size") if experts else 0,
        "moe_shared_expert_intermediate_size": shared,
        "tie_word_embeddings": bool(hf.get("tie_word_embeddings", False)),
    }


def baichuan_version(hf: HfConfig) -> tuple[str, str]:
    """v1_7b, v1_13b, v2_7b or v2_13b, and why."""
    size = "7b" if hf.get("num_attention_heads") == 32 else "13b"
    vocab, architecture = given(hf, "vocab_size", 0), hf["architectures"][0]
    if architecture == "BaiChuanForCausalLM":
        return f"v1_{size}", f"architecture {architecture} is Baichuan 1's spelling"
    if BAICHUAN1_VOCABULARY <= vocab < BAICHUAN2_VOCABULARY:
        return (
            f"v1_{size}",
            f"vocab_size {vocab} is Baichuan 1's {BAICHUAN1_VOCABULARY}, or that with additions",
        )
    if vocab < BAICHUAN1_VOCABULARY and vocab % ROUND_VOCABULARY == 0:
        return f"v1_{size}", f"vocab_size {vocab} is round like Baichuan 1's {BAICHUAN1_VOCABULARY}"
    return f"v2_{size}", f"vocab_size {vocab} is not Baichuan 1's {BAICHUAN1_VOCABULARY}"


def baichuan_config(hf: HfConfig, layout: Layout, version: str) -> Config:
    """Baichuan 1 and 2: rotary embedding with 7B, ALiBi with 13B."""
    is_small = version.endswith("7b")
    longest = hf.get("max_position_embeddings") if is_small else hf.get("model_max_length")
    own = {
        "architecture": "BaichuanForCausalLM",
        "position_embedding_type": "rope_gpt_neox" if is_small else "alibi",
        "num_key_value_heads": required(hf, "num_attention_heads"),
        "max_position_embeddings": longest,
    }
    return {**common_fields(hf, layout, **own), "model_version": version}


def chatglm_version(hf: HfConfig) -> tuple[str, str]:
    """chatglm2, chatglm3 or glm4, and why. Their weights are laid out alike; the rotary scaling differs."""
    if hf.get("position_encoding_2d") or "multi_query_group_num" not in hf:
        raise UnsupportedModelError(
            "This is a first generation ChatGLM or GLM.",
            why="Its attention layout is not known well enough to convert it without risk.",
            hint="Use ChatGLM2, ChatGLM3 or GLM-4-9B.",
        )
    known = {"chatglm2": "chatglm2", "chatglm3": "chatglm3", "glm-4": "glm4", "glm4": "glm4"}
    published = str(hf.get("_name_or_path", "")).lower()
    for part, version in known.items():
        if part in published:
            return version, f"_name_or_path in config.json is {published!r}"
    if hf.get("padded_vocab_size") == GLM4_VOCABULARY:
        return "glm4", f"padded_vocab_size is GLM-4's {GLM4_VOCABULARY}"
    if hf.get("layernorm_epsilon") == GLM4_EPSILON:
        return "glm4", f"layernorm_epsilon is GLM-4's {GLM4_EPSILON}"
    if isinstance(hf.get("eos_token_id"), list):
        return "glm4", "eos_token_id is a list, as in GLM-4 only"
    return "chatglm3", "nothing in config.json points to ChatGLM2 or GLM-4"


def chatglm_config(hf: HfConfig, layout: Layout, version: str) -> Config:
    """ChatGLM2, ChatGLM3 and GLM-4-9B."""
    ratio = given(hf, "rope_ratio", 1.0)
    base, scaling = 10000.0 * ratio, None
    if version == "chatglm2":
        base, scaling = 10000.0, {"type": "linear", "factor": ratio} if ratio > 1 else None
    own = {
        "vocab_size": hf.get("padded_vocab_size") or required(hf, "vocab_size"),
        "num_hidden_layers": hf.get("num_layers") or required(hf, "num_hidden_layers"),
        "hidden_act": "swiglu",
        "norm_epsilon": given(hf, "layernorm_epsilon", 1e-05),
        "position_embedding_type": "rope_gptj",
        "num_key_value_heads": required(hf, "multi_query_group_num")
        if given(hf, "multi_query_attention", True)
        else required(hf, "num_attention_heads"),
        "intermediate_size": required(hf, "ffn_hidden_size"),
        "max_position_embeddings": hf.get("seq_length"),
    }
    return {
        "chatglm_version": version,
        "add_bias_linear": given(hf, "add_bias_linear", False),
        "add_qkv_bias": given(hf, "add_qkv_bias", True),
        "apply_query_key_layer_scaling": False,
        "apply_residual_connection_post_layernorm": given(
            hf, "apply_residual_connection_post_layernorm", False
        ),
        "rmsnorm": given(hf, "rmsnorm", True),
        "rotary_pct": 0.5,
        "rotary_base": base,
        "rotary_scaling": scaling,
        **common_fields(hf, layout, **own),
    }


def internlm2_config(hf: HfConfig, layout: Layout, version: str) -> Config:
    """InternLM2; its converter writes fewer fields than the others."""
    base, scaling = rope(hf, add_rope_type=False)
    return {
        "architecture": hf["architectures"][0],
        "dtype": resolve_dtype(hf, layout),
        "logits_dtype": "float32",
        "num_hidden_layers": required(hf, "num_hidden_layers"),
        "num_attention_heads": required(hf, "num_attention_heads"),
        "num_key_value_heads": kv_heads(hf),
        "hidden_size": required(hf, "hidden_size"),
        "intermediate_size": required(hf, "intermediate_size"),
        "norm_epsilon": given(hf, "rms_norm_eps", 1e-06),
        "vocab_size": required(hf, "vocab_size"),
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": base,
        "max_position_embeddings": hf.get("max_position_embeddings"),
        "hidden_act": given(hf, "hidden_act", "silu"),
        "use_parallel_embedding": layout.use_parallel_embedding,
        "embedding_sharding_dim": layout.embedding_sharding_dim,
        "quantization": {"quant_algo": None},
        "mapping": {
            "world_size": layout.world_size,
            "tp_size": layout.tp_size,
            "pp_size": layout.pp_size,
        },
        "attn_bias": bool(hf.get("bias", False)),
        "rotary_scaling": scaling,
    }


ConfigMaker = Callable[[HfConfig, Layout, str], Config]
