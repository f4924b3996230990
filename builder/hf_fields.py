"""The types of config.json's fields, so that a damaged one is named and not stumbled over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import CheckpointError

WHOLE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_layers", "num_attention_heads",
    "num_key_value_heads", "multi_query_group_num", "head_dim", "kv_channels", "vocab_size",
    "padded_vocab_size", "max_position_embeddings", "model_max_length", "seq_length", "ffn_hidden_size",
    "num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size",
    "shared_expert_intermediate_size", "decoder_sparse_step",
)  # fmt: skip
NUMBER = (
    "rope_theta", "rotary_emb_base", "rope_ratio", "rms_norm_eps", "layernorm_epsilon", "layer_norm_epsilon",
)  # fmt: skip
TEXT = ("model_type", "hidden_act", "torch_dtype", "dtype", "_name_or_path", "model_version")
OBJECT = ("rope_scaling", "rope_parameters", "quantization_config")
LARGEST = 2**31

# how a kind is said: the names of its fields, their types
KINDS: dict[str, tuple[tuple[str, ...], tuple[type, ...]]] = {
    "a whole number": (WHOLE, (int,)),
    "a number": (NUMBER, (int, float)),
    "text": (TEXT, (str,)),
    "an object": (OBJECT, (dict,)),
}


def check_fields(config: Mapping[str, Any]) -> None:
    """Refuse a config whose known fields have another type than any model gives them; null is no value.

    Raises:
        CheckpointError: `config_field_wrong`, naming the field, its value and what it must be.
    """
    for wanted, (names, types) in KINDS.items():
        for name in names:
            value = config.get(name)
            if value is not None and not _is_right(value, types):
                raise _wrong(name, value, wanted)
    architectures = config.get("architectures")
    is_list = isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    if architectures is not None and not is_list:
        raise _wrong("architectures", architectures, "a list of names")


def _is_right(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool) or not isinstance(value, types):
        return False
    return not isinstance(value, int) or abs(value) < LARGEST or types != (int,)


def _wrong(name: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is {value!r} in config.json; it must be {wanted}.",
        hint="Use the config.json that was published with the weights.",
        code="config_field_wrong",
    )
