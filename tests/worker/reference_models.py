"""The tiny models in PyTorch, for make_expected_tokens.py: transformers' classes, or what is equal to them.

Families that transformers has no class for run as the class they are equal to, their weights renamed;
ALiBi and Qwen1's logn attention run in `Reference`.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from tests import tiny
from tests.tiny import Floats

Weights = dict[str, Floats]
Logits = Callable[[list[int]], torch.Tensor]


def model_logits(name: str) -> Logits:
    """The logits after the last of the given ids, for the tiny model `name`."""
    config = tiny.CONFIGS[name]
    if config["model_type"] == "qwen":
        return Reference(_llama_config(config), _from_qwen1(config), logn_length=config["seq_length"])
    if config["model_type"] == "baichuan":
        return _baichuan_logits(name, config)
    if config["model_type"] == "internlm2":
        return native_logits(_llama_config(config), _from_internlm2(config))
    if config["model_type"] == "chatglm":
        return native_logits(_glm_config(name, config), _from_chatglm(name, config))
    return native_logits(dict(config), tiny.weights(name))


def _baichuan_logits(name: str, config: dict[str, Any]) -> Logits:
    weights = _from_baichuan(tiny.weights(name), config)
    if name.startswith("baichuan2"):
        head = torch.from_numpy(weights["lm_head.weight"])
        weights["lm_head.weight"] = torch.nn.functional.normalize(head).numpy()
    if name.endswith("13b"):
        return Reference(_llama_config(config), weights, alibi=True)
    return native_logits(_llama_config(config), weights)


def native_logits(config: dict[str, Any], weights: Weights) -> Logits:
    """A model of transformers with these weights, loaded as any checkpoint is."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        state = {key: torch.from_numpy(value).contiguous() for key, value in weights.items()}
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    wrong = {key: value for key, value in report.items() if value}
    wrong.pop("missing_keys", None) if config.get("tie_word_embeddings") else None
    if wrong:
        raise SystemExit(f"{config['architectures'][0]}: weights do not fit: {wrong}")
    return lambda ids: _last_logits(model, ids)


def _last_logits(model: Any, ids: list[int]) -> torch.Tensor:
    output: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return output


def _llama_config(config: dict[str, Any]) -> dict[str, Any]:
    """The Llama config with the same arithmetic."""
    renamed = {
        "intermediate_size": config["intermediate_size"] // (2 if config["model_type"] == "qwen" else 1),
        "num_key_value_heads": config.get("num_key_value_heads", config["num_attention_heads"]),
        "rms_norm_eps": config.get("rms_norm_eps") or config["layer_norm_epsilon"],
        "rope_theta": config.get("rope_theta", 10000.0),
    }
    return {**config, **renamed, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def _from_qwen1(config: dict[str, Any]) -> Weights:
    weights, renamed = tiny.weights("qwen1"), {}
    for name, values in weights.items():
        name = name.replace("transformer.h.", "model.layers.").replace("transformer.ln_f", "model.norm")
        name = name.replace("transformer.wte", "model.embed_tokens").replace(
            "attn.c_proj", "self_attn.o_proj"
        )
        name = name.replace("ln_1", "input_layernorm").replace("ln_2", "post_attention_layernorm")
        name = name.replace("mlp.w2", "mlp.gate_proj").replace("mlp.w1", "mlp.up_proj")
        name = name.replace("mlp.c_proj", "mlp.down_proj")
        if "c_attn" in name:
            for part, piece in zip("qkv", np.split(values, 3), strict=True):
                renamed[name.replace("attn.c_attn", f"self_attn.{part}_proj")] = piece
        else:
            renamed[name] = values
    return renamed


def _from_baichuan(weights: Weights, config: dict[str, Any]) -> Weights:
    renamed = {}
    for name, values in weights.items():
        if "W_pack" in name:
            for part, piece in zip("qkv", np.split(values, 3), strict=True):
                renamed[name.replace("W_pack", f"{part}_proj")] = piece
        else:
            renamed[name] = values
    return renamed


def _from_internlm2(config: dict[str, Any]) -> Weights:
    renames = {
        "tok_embeddings": "embed_tokens",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
    }
    renamed = {}
    for name, values in tiny.weights("internlm2").items():
        for old, new in renames.items():
            name = name.replace(old, new)
        if name == "output.weight":
            name = "lm_head.weight"
        if "wqkv" in name:
            for part, piece in _split_wqkv(values, config):
                renamed[name.replace("attention.wqkv", f"self_attn.{part}_proj")] = piece
        else:
            renamed[name] = values
    return renamed


def _split_wqkv(values: Floats, config: dict[str, Any]) -> Iterator[tuple[str, Floats]]:
    """wqkv is grouped: for each key-value head its query heads, then its key, then its value."""
    groups, hidden = config["num_key_value_heads"], config["hidden_size"]
    queries = config["num_attention_heads"] // groups
    grouped = values.reshape(groups, queries + 2, hidden // config["num_attention_heads"], hidden)
    yield "q", grouped[:, :queries].reshape(-1, hidden)
    yield "k", grouped[:, -2].reshape(-1, hidden)
    yield "v", grouped[:, -1].reshape(-1, hidden)


def _glm_config(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """chatglm2 stretches positions by rope_ratio, the later ones multiply the base by it."""
    ratio = config.get("rope_ratio", 1)
    linear = name == "chatglm2"
    rope: dict[str, Any] = {"rope_theta": 10000.0 * (1 if linear else ratio), "partial_rotary_factor": 0.5}
    rope |= {"rope_type": "linear", "factor": float(ratio)} if linear else {"rope_type": "default"}
    return {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "attention_bias": config["add_qkv_bias"],
        "head_dim": config["kv_channels"],
        "hidden_act": "silu",
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "max_position_embeddings": config["seq_length"],
        "num_attention_heads": config["num_attention_heads"],
        "num_hidden_layers": config["num_layers"],
        "num_key_value_heads": config["multi_query_group_num"],
        "pad_token_id": 0,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": config["layernorm_epsilon"],
        "rope_parameters": rope,
        "tie_word_embeddings": False,
        "vocab_size": config["padded_vocab_size"],
    }


def _from_chatglm(name: str, config: dict[str, Any]) -> Weights:
    renames = {
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.output_layer": "lm_head",
        "transformer.encoder.layers": "model.layers",
        "self_attention.dense": "self_attn.o_proj",
        "dense_h_to_4h": "gate_up_proj",
        "dense_4h_to_h": "down_proj",
    }
    kv_rows = config["multi_query_group_num"] * config["kv_channels"]
    renamed = {}
    for key, values in tiny.weights(name).items():
        for old, new in renames.items():
            key = key.replace(old, new)
        if "query_key_value" in key:
            for part, piece in zip("qkv", np.split(values, [-2 * kv_rows, -kv_rows]), strict=True):
                renamed[key.replace("self_attention.query_key_value", f"self_attn.{part}_proj")] = piece
        else:
            renamed[key] = values
    return renamed


class Reference:
    """A Llama in a page of PyTorch, with ALiBi instead of rotary positions or Qwen1's logn attention."""

    def __init__(
        self, config: dict[str, Any], weights: Weights, *, alibi: bool = False, logn_length: int = 0
    ) -> None:
        self.config, self.alibi, self.logn_length = config, alibi, logn_length
        self.weights = {key: torch.from_numpy(value) for key, value in weights.items()}

    def __call__(self, ids: list[int]) -> torch.Tensor:
        hidden = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            hidden = hidden + self._attention(prefix, self._norm(f"{prefix}.input_layernorm", hidden))
            normed = self._norm(f"{prefix}.post_attention_layernorm", hidden)
            gate = torch.nn.functional.silu(self._linear(f"{prefix}.mlp.gate_proj", normed))
            up = self._linear(f"{prefix}.mlp.up_proj", normed)
            hidden = hidden + self._linear(f"{prefix}.mlp.down_proj", gate * up)
        return self._norm("model.norm", hidden[-1]) @ self.weights["lm_head.weight"].T

    def _linear(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(
            values, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        )

    def _norm(self, name: str, values: torch.Tensor) -> torch.Tensor:
        mean_square = values.pow(2).mean(-1, keepdim=True)
        return (
            values * torch.rsqrt(mean_square + self.config["rms_norm_eps"]) * self.weights[f"{name}.weight"]
        )

    def _attention(self, prefix: str, hidden: torch.Tensor) -> torch.Tensor:
        heads, length = self.config["num_attention_heads"], hidden.shape[0]
        query, key, value = (
            self._linear(f"{prefix}.self_attn.{part}_proj", hidden).view(length, -1, self._head_size())
            for part in "qkv"
        )
        positions = torch.arange(length, dtype=torch.float32)
        bias = torch.full((length, length), -math.inf).triu(1)
        if self.alibi:
            bias = bias + _alibi_slopes(heads)[:, None, None] * positions
        else:
            query, key = self._rotate(query, positions), self._rotate(key, positions)
        if self.logn_length:
            scale = torch.log(positions + 1) / math.log(self.logn_length)
            query = query * scale.clamp(min=1.0)[:, None, None]
        key, value = (part.repeat_interleave(heads // part.shape[1], 1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(self._head_size()) + bias
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
        return self._linear(f"{prefix}.self_attn.o_proj", mixed.reshape(length, -1))

    def _head_size(self) -> int:
        size: int = self.config["hidden_size"] // self.config["num_attention_heads"]
        return size

    def _rotate(self, heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        size = self._head_size()
        inverse = 1.0 / self.config["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        angles = torch.outer(positions, inverse)[:, None, :].repeat(1, 1, 2)
        first, second = heads.chunk(2, -1)
        return heads * angles.cos() + torch.cat((-second, first), -1) * angles.sin()


def _alibi_slopes(heads: int) -> torch.Tensor:
    def geometric(count: int) -> list[float]:
        start = 2.0 ** -(2.0 ** -(math.log2(count) - 3))
        return [start ** (index + 1) for index in range(count)]

    nearest = 2 ** math.floor(math.log2(heads))
    return torch.tensor(geometric(nearest) + geometric(2 * nearest)[0::2][: heads - nearest])
