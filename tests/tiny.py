"""Tiny random models, one a family, as Hugging Face checkpoints: the same numbers everywhere.

Every weight is representable in bfloat16, so that float32 and bfloat16 checkpoints hold the same model.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.tensors import TensorSpec, TensorWriter, cast

Floats = npt.NDArray[np.float32]

PROMPT_LENGTHS = (3, 17, 40)
# Where the first prompts tried led to a near-tie between the best two tokens.
PROMPT_SEEDS: Mapping[str, int] = {
    "mistral-window": 1,
    "qwen2-moe": 1,
    "qwen3-moe": 1,
    "baichuan2-7b": 2,
    "baichuan2-13b": 1,
}
NEW_TOKENS = 24


@dataclass(frozen=True)
class Shape:
    """A weight's shape and what it is: matrix, router, embedding, head, norm or bias."""

    shape: tuple[int, ...]
    kind: str


def _gpt_like(architecture: str, model_type: str, **extra: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "vocab_size": 272,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        **extra,
    }


def _llama(**extra: Any) -> dict[str, Any]:
    return _gpt_like("LlamaForCausalLM", "llama", **{"num_key_value_heads": 4, **extra})


def _mistral(**extra: Any) -> dict[str, Any]:
    return _gpt_like("MistralForCausalLM", "mistral", num_key_value_heads=2, **extra)


def _qwen2(**extra: Any) -> dict[str, Any]:
    return _gpt_like(
        "Qwen2ForCausalLM",
        "qwen2",
        **{
            "num_key_value_heads": 2,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 2,
            **extra,
        },
    )


def _baichuan(heads: int, hidden: int, vocab: int, **extra: Any) -> dict[str, Any]:
    config = _gpt_like("BaichuanForCausalLM", "baichuan", rms_norm_eps=1e-6, model_max_length=128, **extra)
    config.update(hidden_size=hidden, num_attention_heads=heads, vocab_size=vocab)
    del config["rope_theta"]
    return config


def _chatglm(**extra: Any) -> dict[str, Any]:
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": 96,
        "hidden_size": 64,
        "kv_channels": 8,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 8,
        "num_layers": 2,
        "original_rope": True,
        "padded_vocab_size": 272,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 128,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **extra,
    }


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [2.0, 2.5, 3.0, 4.0],
    "original_max_position_embeddings": 64,
}

# Hugging Face config of every model, by the name the tests use.
CONFIGS: Mapping[str, dict[str, Any]] = {
    "llama": _llama(num_key_value_heads=8, vocab_size=275),
    "llama3": _llama(rope_theta=500000.0, rope_scaling=_LLAMA3_ROPE, tie_word_embeddings=True),
    "llama-linear": _llama(rope_scaling={"type": "linear", "factor": 2.0}),
    "llama-dynamic": _llama(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
    "llama-longrope": _llama(rope_scaling=_LONGROPE),
    "yi": _llama(rope_theta=5000000.0, num_key_value_heads=2, vocab_size=288),
    "mistral": _mistral(vocab_size=274, sliding_window=None),
    "mistral-window": _mistral(sliding_window=12),
    "mistral-nemo": _mistral(hidden_size=80, num_attention_heads=4, head_dim=16, sliding_window=None),
    "mixtral": _gpt_like(
        "MixtralForCausalLM",
        "mixtral",
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    "qwen1": {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "hidden_size": 64,
        "intermediate_size": 192,
        "kv_channels": 8,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 128,
        "no_bias": True,
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "seq_length": 24,
        "tie_word_embeddings": False,
        "use_dynamic_ntk": False,
        "use_logn_attn": True,
        "vocab_size": 276,
        "torch_dtype": "float32",
    },
    "qwen2": _qwen2(vocab_size=277),
    "qwen2-yarn": _qwen2(
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    ),
    "qwen2-moe": _gpt_like(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        num_key_value_heads=4,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        decoder_sparse_step=1,
        norm_topk_prob=False,
        use_sliding_window=False,
    ),
    "qwen3": _gpt_like(
        "Qwen3ForCausalLM",
        "qwen3",
        num_key_value_heads=2,
        head_dim=16,
        attention_bias=False,
        rope_theta=1000000.0,
    ),
    "qwen3-moe": _gpt_like(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        num_key_value_heads=2,
        head_dim=16,
        attention_bias=False,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        decoder_sparse_step=1,
        norm_topk_prob=True,
        mlp_only_layers=[],
    ),
    "internlm2": _gpt_like(
        "InternLM2ForCausalLM",
        "internlm2",
        num_key_value_heads=4,
        bias=False,
        rope_theta=1000000.0,
        rope_scaling={"type": "dynamic", "factor": 2.0},
    ),
    "baichuan1-7b": _baichuan(32, 128, 300),
    "baichuan2-7b": _baichuan(32, 128, 301),
    "baichuan1-13b": _baichuan(40, 160, 302),
    "baichuan2-13b": _baichuan(40, 160, 303),
    "chatglm2": _chatglm(rope_ratio=2),
    "chatglm3": _chatglm(padded_vocab_size=276),
    "glm-4": _chatglm(rope_ratio=500, layernorm_epsilon=1.5625e-07, vocab_size=272, num_hidden_layers=2),
}


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Every tensor of the Hugging Face checkpoint with this config."""
    layouts = {"qwen": _qwen1_shapes, "baichuan": _baichuan_shapes, "chatglm": _chatglm_shapes}
    layouts["internlm2"] = _internlm2_shapes
    return dict(layouts.get(config["model_type"], _llama_shapes)(config))


def _top_shapes(
    config: Mapping[str, Any], embedding: str, norm: str, head: str
) -> Iterator[tuple[str, Shape]]:
    hidden = config["hidden_size"]
    vocab = config.get("padded_vocab_size") or config["vocab_size"]
    yield embedding, Shape((vocab, hidden), "embedding")
    yield norm, Shape((hidden,), "norm")
    if not config["tie_word_embeddings"]:
        yield head, Shape((vocab, hidden), "head")


def _linear(prefix: str, rows: int, columns: int, bias: bool = False) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.weight", Shape((rows, columns), "matrix")
    if bias:
        yield f"{prefix}.bias", Shape((rows,), "bias")


def _norms(hidden: int, *names: str) -> Iterator[tuple[str, Shape]]:
    for name in names:
        yield f"{name}.weight", Shape((hidden,), "norm")


def _gated_mlp(
    prefix: str, hidden: int, width: int, names: tuple[str, str, str]
) -> Iterator[tuple[str, Shape]]:
    for name in names[:2]:
        yield from _linear(f"{prefix}.{name}", width, hidden)
    yield from _linear(f"{prefix}.{names[2]}", hidden, width)


def _llama_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    yield from _top_shapes(config, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    kv_rows = config["num_key_value_heads"] * head_dim
    bias = config["model_type"].startswith("qwen2")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield from _norms(hidden, f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm")
        yield from _linear(f"{prefix}.self_attn.q_proj", heads * head_dim, hidden, bias)
        yield from _linear(f"{prefix}.self_attn.k_proj", kv_rows, hidden, bias)
        yield from _linear(f"{prefix}.self_attn.v_proj", kv_rows, hidden, bias)
        yield from _linear(f"{prefix}.self_attn.o_proj", hidden, heads * head_dim)
        if config["model_type"].startswith("qwen3"):
            yield from _norms(head_dim, f"{prefix}.self_attn.q_norm", f"{prefix}.self_attn.k_norm")
        yield from _llama_mlp(config, prefix)


def _llama_mlp(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Shape]]:
    hidden, names = config["hidden_size"], ("gate_proj", "up_proj", "down_proj")
    if config["model_type"] == "mixtral":
        block = f"{prefix}.block_sparse_moe"
        yield f"{block}.gate.weight", Shape((config["num_local_experts"], hidden), "router")
        for expert in range(config["num_local_experts"]):
            width = config["intermediate_size"]
            yield from _gated_mlp(f"{block}.experts.{expert}", hidden, width, ("w1", "w3", "w2"))
    elif "num_experts" in config:
        yield f"{prefix}.mlp.gate.weight", Shape((config["num_experts"], hidden), "router")
        for expert in range(config["num_experts"]):
            width = config["moe_intermediate_size"]
            yield from _gated_mlp(f"{prefix}.mlp.experts.{expert}", hidden, width, names)
        if shared := config.get("shared_expert_intermediate_size"):
            yield from _gated_mlp(f"{prefix}.mlp.shared_expert", hidden, shared, names)
            yield from _linear(f"{prefix}.mlp.shared_expert_gate", 1, hidden)
    else:
        yield from _gated_mlp(f"{prefix}.mlp", hidden, config["intermediate_size"], names)


def _qwen1_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    yield from _top_shapes(config, "transformer.wte.weight", "transformer.ln_f.weight", "lm_head.weight")
    hidden = config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"transformer.h.{layer}"
        yield from _norms(hidden, f"{prefix}.ln_1", f"{prefix}.ln_2")
        yield from _linear(f"{prefix}.attn.c_attn", 3 * hidden, hidden, bias=True)
        yield from _linear(f"{prefix}.attn.c_proj", hidden, hidden)
        yield from _gated_mlp(
            f"{prefix}.mlp", hidden, config["intermediate_size"] // 2, ("w1", "w2", "c_proj")
        )


def _baichuan_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    yield from _top_shapes(config, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    hidden = config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield from _norms(hidden, f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm")
        yield from _linear(f"{prefix}.self_attn.W_pack", 3 * hidden, hidden)
        yield from _linear(f"{prefix}.self_attn.o_proj", hidden, hidden)
        yield from _llama_mlp(config, prefix)


def _internlm2_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    yield from _top_shapes(config, "model.tok_embeddings.weight", "model.norm.weight", "output.weight")
    hidden = config["hidden_size"]
    head_dim = hidden // config["num_attention_heads"]
    rows = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * head_dim
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield from _norms(hidden, f"{prefix}.attention_norm", f"{prefix}.ffn_norm")
        yield from _linear(f"{prefix}.attention.wqkv", rows, hidden)
        yield from _linear(f"{prefix}.attention.wo", hidden, hidden)
        width = config["intermediate_size"]
        yield from _gated_mlp(f"{prefix}.feed_forward", hidden, width, ("w1", "w3", "w2"))


def _chatglm_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    names = ("transformer.embedding.word_embeddings", "transformer.encoder.final_layernorm")
    head = "transformer.output_layer.weight"
    yield from _top_shapes(config, f"{names[0]}.weight", f"{names[1]}.weight", head)
    hidden, head_dim = config["hidden_size"], config["kv_channels"]
    query_rows = config["num_attention_heads"] * head_dim
    rows = query_rows + 2 * config["multi_query_group_num"] * head_dim
    for layer in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{layer}"
        yield from _norms(hidden, f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm")
        yield from _linear(f"{prefix}.self_attention.query_key_value", rows, hidden, config["add_qkv_bias"])
        yield from _linear(f"{prefix}.self_attention.dense", hidden, query_rows)
        yield from _linear(f"{prefix}.mlp.dense_h_to_4h", 2 * config["ffn_hidden_size"], hidden)
        yield from _linear(f"{prefix}.mlp.dense_4h_to_h", hidden, config["ffn_hidden_size"])


def weights(name: str) -> dict[str, Floats]:
    """The model's weights under their Hugging Face names, float32, from a seed of the model's name."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return {tensor: _draw(random, shape) for tensor, shape in shapes(CONFIGS[name]).items()}


def _draw(random: np.random.RandomState, shape: Shape) -> Floats:
    """Wide enough that the next token depends on the context and stands clear of the second best."""
    normal = random.standard_normal(shape.shape)
    fan_in = shape.shape[-1]
    scale = {"matrix": 1.4 / fan_in**0.5, "router": 4.0 / fan_in**0.5, "head": 4.0 / fan_in**0.5}
    values = normal * scale.get(shape.kind, {"embedding": 1.0}.get(shape.kind, 0.2))
    if shape.kind == "norm":
        values += 1.0
    rounded: Floats = cast(cast(values.astype(np.float32), "F32", "BF16"), "BF16", "F32")
    return rounded


def prompts(name: str) -> list[list[int]]:
    """Prompts of PROMPT_LENGTHS tokens; ids 0 to 2 are kept for special tokens."""
    config = CONFIGS[name]
    vocab = config.get("padded_vocab_size") or config["vocab_size"]
    seed = zlib.crc32(f"{name} prompts".encode()) + PROMPT_SEEDS.get(name, 0)
    random = np.random.RandomState(seed)
    return [random.randint(3, vocab, length).tolist() for length in PROMPT_LENGTHS]


def write_hf(name: str, folder: Path, dtype: str = "F32") -> Path:
    """Write config.json and model.safetensors of the tiny model `name`; `dtype` is F32 or BF16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIGS[name], "torch_dtype": {"F32": "float32", "BF16": "bfloat16"}[dtype]}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = weights(name)
    specs = {tensor: TensorSpec(dtype, values.shape) for tensor, values in tensors.items()}
    with TensorWriter(folder / "model.safetensors", specs, {"format": "pt"}) as writer:
        for tensor, values in tensors.items():
            writer.write(tensor, cast(values, "F32", dtype))
    return folder
