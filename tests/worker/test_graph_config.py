"""What config.json says is computed, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import CheckpointError, UnsupportedModelError, UsageError
from worker.openvino.graph import build_model
from worker.openvino.rope import rotary_table
from worker.openvino.spec import ModelSpec, Rotary, read_config

ROTARY: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "expected_rotary.json").read_text(encoding="utf-8")
)
LLAMA: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "dtype": "float16",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 275,
    "hidden_act": "silu",
    "norm_epsilon": 1e-5,
    "position_embedding_type": "rope_gpt_neox",
    "max_position_embeddings": 512,
    "mapping": {"tp_size": 2, "pp_size": 3},
}


def read(folder: Path, **changes: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}), encoding="utf-8")
    return read_config(folder)


def test_reads_what_the_graph_needs(tmp_path: Path) -> None:
    spec = read(tmp_path)
    assert (spec.layers, spec.heads, spec.kv_heads, spec.head_size) == (2, 8, 4, 8)
    assert (spec.ranks.tp, spec.ranks.pp, spec.ranks.embedding_dim) == (2, 3, None)
    assert spec.max_context == 512
    assert spec.experts is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "GPTForCausalLM"}, "GPTForCausalLM"),
        ({"position_embedding_type": "learned_absolute"}, "learned_absolute"),
        ({"position_embedding_type": "mrope"}, "mrope"),
        ({"position_embedding_type": "chatglm"}, "chatglm"),
        ({"rotary_scaling": {"rope_type": "mrope"}}, "mrope"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rmsnorm": False}, "rmsnorm"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ({"residual_mlp": True}, "residual_mlp"),
        ({"attention_multiplier": 0.5}, "attention_multiplier"),
        ({"quantization": {"quant_algo": "FP8"}}, "FP8"),
        ({"quantization": {"kv_cache_quant_algo": "INT8"}}, "INT8"),
    ],
)
def test_what_it_cannot_compute_is_refused_by_name(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=named) as caught:
        read(tmp_path, **changes)
    assert caught.value.hint


def test_a_hugging_face_folder_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(CheckpointError, match="not the config.json of a TRT-LLM checkpoint"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "7"])
def test_a_broken_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_config(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_config(tmp_path)


@pytest.mark.parametrize("arguments", [{"precision": "fp4"}, {"window": 0}])
def test_wrong_arguments_are_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    read(tmp_path)
    with pytest.raises(UsageError):
        build_model(tmp_path, **arguments)


def test_longrope_ends_where_its_tables_change(tmp_path: Path) -> None:
    scaling = {"type": "su", "original_max_position_embeddings": 256, "short_factor": [], "long_factor": []}
    assert read(tmp_path, rotary_scaling=scaling).max_context == 256


@pytest.mark.parametrize("name", list(ROTARY))
def test_rotary_tables_equal_those_of_transformers(name: str) -> None:
    expected = ROTARY[name]
    rotary = Rotary(
        dim=expected["head_dim"],
        base=expected["rope_theta"],
        interleaved=False,
        scaling=expected["rope_scaling"],
        max_positions=expected["max_position_embeddings"],
    )
    frequencies, factor = rotary_table(rotary)
    np.testing.assert_allclose(frequencies, expected["frequencies"], rtol=1e-6)
    assert factor == pytest.approx(expected["factor"], rel=1e-12)
