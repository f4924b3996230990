"""SmolLM2's GGUF file -> the files of an ordinary Hugging Face checkpoint, with numpy only.

Two things differ between the formats. llama.cpp stores the rows of q_proj and k_proj interleaved for its
rotary embedding (GPT-J order); Hugging Face wants the two halves of a head one after the other. And the
tokenizer is kept as bare lists; `tokenizer.ggml.pre = smollm` names its pipeline: single digits, then
GPT-2's byte level.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from common.errors import CheckpointError

CONTROL_TOKEN = 3  # llama.cpp's token type for special tokens

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


class SmolGguf:
    """An open SmolLM2 GGUF file.

    Raises:
        CheckpointError: the file is not a llama model with smollm's tokenizer.
    """

    def __init__(self, path: Path) -> None:
        self._reader = gguf.GGUFReader(path)
        kind = (self.field("general.architecture"), self.field("tokenizer.ggml.pre"))
        if kind != ("llama", "smollm"):
            raise CheckpointError(f"{path} is not a SmolLM2 model.", why=f"It says {kind}.")

    def field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        return None if field is None else field.contents()

    def write_checkpoint(self, folder: Path) -> None:
        """Write config, weights, tokenizer and generation settings into the existing `folder`."""
        _write_json(folder / "config.json", self.config())
        _write_json(folder / "generation_config.json", self.generation_config())
        _write_json(folder / "tokenizer.json", self.tokenizer())
        _write_json(folder / "tokenizer_config.json", self.tokenizer_config())
        _write_json(folder / "special_tokens_map.json", self.special_tokens())
        weights = folder / "model.safetensors"
        save_file(self.weights(), weights, metadata={"format": "pt"})
        weights.chmod(0o644)  # the library writes 0600

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": self.field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.field("tokenizer.ggml.padding_token_id"),
            "hidden_act": "silu",
            "hidden_size": self.field("llama.embedding_length"),
            "intermediate_size": self.field("llama.feed_forward_length"),
            "max_position_embeddings": self.field("llama.context_length"),
            "model_type": "llama",
            "num_attention_heads": self.field("llama.attention.head_count"),
            "num_hidden_layers": self.field("llama.block_count"),
            "num_key_value_heads": self.field("llama.attention.head_count_kv"),
            "rms_norm_eps": _shortest(self.field("llama.attention.layer_norm_rms_epsilon")),
            "rope_scaling": None,
            "rope_theta": _shortest(self.field("llama.rope.freq_base")),
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": self.field("llama.vocab_size"),
        }

    def generation_config(self) -> dict[str, Any]:
        return {
            "_from_model_config": True,
            "bos_token_id": self.field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.field("tokenizer.ggml.padding_token_id"),
        }

    def weights(self) -> dict[str, NDArray[np.float16]]:
        """All tensors under their Hugging Face names, as float16.

        float16, because the file's 4-bit scales are float16 already and it is `convert-trt`'s default type:
        the conversion then copies, and the whole chain rounds once, here.
        """
        return {_hf_name(tensor.name): self._float16(tensor) for tensor in self._reader.tensors}

    def _float16(self, tensor: Any) -> NDArray[np.float16]:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
        part = tensor.name.split(".")[-2]
        if part == "attn_q":
            return _halves_from_pairs(values, self.field("llama.attention.head_count"))
        if part == "attn_k":
            return _halves_from_pairs(values, self.field("llama.attention.head_count_kv"))
        return values

    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json: byte-level BPE over single digits, no normalizer, nothing added around a text."""
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added_token(number, text) for number, text in self._special()],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level()],
            },
            "post_processor": None,
            "decoder": _byte_level(),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {text: number for number, text in enumerate(self._tokens())},
                "merges": [merge.split(" ") for merge in self.field("tokenizer.ggml.merges")],
            },
        }

    def tokenizer_config(self) -> dict[str, Any]:
        decoder = {str(number): _added_token(number, text) for number, text in self._special()}
        for entry in decoder.values():
            del entry["id"]
        return {
            "add_prefix_space": False,
            "added_tokens_decoder": decoder,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            **self.special_tokens(),
            "chat_template": self.field("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.field("llama.context_length"),
            "tokenizer_class": "GPT2Tokenizer",
        }

    def special_tokens(self) -> dict[str, str]:
        tokens = self._tokens()
        return {
            "bos_token": tokens[self.field("tokenizer.ggml.bos_token_id")],
            "eos_token": tokens[self.field("tokenizer.ggml.eos_token_id")],
            "unk_token": tokens[self.field("tokenizer.ggml.unknown_token_id")],
            "pad_token": tokens[self.field("tokenizer.ggml.padding_token_id")],
        }

    def _tokens(self) -> list[str]:
        tokens: list[str] = self.field("tokenizer.ggml.tokens")
        return tokens

    def _special(self) -> list[tuple[int, str]]:
        kinds = self.field("tokenizer.ggml.token_type")
        numbered = enumerate(zip(self._tokens(), kinds, strict=True))
        return [(number, text) for number, (text, kind) in numbered if kind == CONTROL_TOKEN]


def _hf_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{parts[3]}"
    return f"{MODEL_NAMES[parts[0]]}.{parts[1]}"


def _halves_from_pairs(rows: NDArray[np.float16], heads: int) -> NDArray[np.float16]:
    """Undo llama.cpp's row order [x0 y0 x1 y1 ...] of a head into [x0 x1 ... y0 y1 ...]; shape kept."""
    head_size = rows.shape[0] // heads
    pairs = rows.reshape(heads, head_size // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _added_token(number: int, text: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": text, **flags}


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
