"""However a checkpoint is cut into ranks, the joined weights are those of the uncut one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from builder.checkpoint import write_checkpoint
from builder.families import Layout
from common.errors import CheckpointError
from tests import tiny
from worker.openvino.spec import read_config
from worker.openvino.weights import CheckpointWeights, Weight

LAYOUTS = {
    "tp2": Layout(dtype="bfloat16", tp_size=2),
    "tp4": Layout(dtype="bfloat16", tp_size=4),
    "tp8": Layout(dtype="bfloat16", tp_size=8),
    "pp2": Layout(dtype="bfloat16", pp_size=2),
    "tp2pp2": Layout(dtype="bfloat16", tp_size=2, pp_size=2),
    "vocabulary cut": Layout(dtype="bfloat16", tp_size=2, use_parallel_embedding=True),
    "embedding cut": Layout(
        dtype="bfloat16", tp_size=2, use_parallel_embedding=True, embedding_sharding_dim=1
    ),
    "expert parallel": Layout(dtype="bfloat16", tp_size=2, moe_tp_size=1, moe_ep_size=2),
    "expert tp and ep": Layout(dtype="bfloat16", tp_size=4, moe_tp_size=2, moe_ep_size=2),
}
COLUMN = ("mlp.fc.weight", "mlp.gate.weight")
ROW = ("attention.dense.weight", "mlp.proj.weight")


def joined(checkpoint: Path) -> dict[str, Weight]:
    """Every weight of the model by name, as the graph reads it."""
    spec = read_config(checkpoint)
    weights = CheckpointWeights(checkpoint, spec)
    found = {"embedding": weights.embedding(), "norm": weights.final_norm()}
    if (head := weights.head()) is not None:
        found["head"] = head
    for layer in range(spec.layers):
        parts = _experts(weights, layer) if spec.experts else _dense(weights, layer)
        found |= {f"{layer}.{name}": weight for name, weight in parts}
        found |= {f"{layer}.{name}": weight for name, weight in _attention(weights, layer)}
    return found


def _attention(weights: CheckpointWeights, layer: int) -> Iterator[tuple[str, Weight]]:
    for name in ("attention.qkv.weight", "attention.qkv.bias"):
        if weights.has(layer, name):
            yield from zip((f"{name} {part}" for part in "qkv"), weights.qkv(layer, name), strict=True)
    yield "dense", weights.columns(layer, "attention.dense.weight")


def _dense(weights: CheckpointWeights, layer: int) -> Iterator[tuple[str, Weight]]:
    if weights.has(layer, "mlp.gate.weight"):
        yield "fc", weights.rows(layer, "mlp.fc.weight")
        yield "gate", weights.rows(layer, "mlp.gate.weight")
    else:
        yield from zip(("up", "gate"), weights.row_blocks(layer, "mlp.fc.weight", 2), strict=True)
    yield "proj", weights.columns(layer, "mlp.proj.weight")


def _experts(weights: CheckpointWeights, layer: int) -> Iterator[tuple[str, Weight]]:
    yield from zip(("up", "gate"), weights.experts(layer, "mlp.fc.weight", 2, axis=1), strict=True)
    yield "down", weights.experts(layer, "mlp.proj.weight", 1, axis=2)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2", "qwen1", "glm-4", "mixtral"])
def test_joined_weights_are_those_of_the_uncut_checkpoint(name: str, layout: str, tmp_path: Path) -> None:
    if "expert" in layout and name != "mixtral":
        layout = "tp4"
    source = tiny.write_hf(name, tmp_path / "hf", "BF16")
    write_checkpoint(source, tmp_path / "whole", Layout(dtype="bfloat16"))
    write_checkpoint(source, tmp_path / "cut", LAYOUTS[layout])
    whole, cut = joined(tmp_path / "whole"), joined(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for key, weight in whole.items():
        np.testing.assert_array_equal(weight.values, cut[key].values, err_msg=key)


def test_an_uncut_checkpoint_is_read_without_a_copy(tmp_path: Path) -> None:
    write_checkpoint(tiny.write_hf("llama", tmp_path / "hf"), tmp_path / "whole", Layout(dtype="float16"))
    assert not [name for name, weight in joined(tmp_path / "whole").items() if weight.values.flags.owndata]


def test_a_missing_rank_file_is_named(tmp_path: Path) -> None:
    write_checkpoint(tiny.write_hf("llama", tmp_path / "hf"), tmp_path / "cut", LAYOUTS["tp2"])
    (tmp_path / "cut" / "rank1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rank1\.safetensors"):
        joined(tmp_path / "cut")


def test_a_rank_file_of_another_model_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tiny.write_hf("qwen3", tmp_path / "a"), tmp_path / "one", Layout(dtype="float16"))
    write_checkpoint(tiny.write_hf("mixtral", tmp_path / "b"), tmp_path / "two", Layout(dtype="float16"))
    shutil.copy(tmp_path / "one" / "rank0.safetensors", tmp_path / "two")
    with pytest.raises(CheckpointError, match=r"mlp\.fc\.weight") as caught:
        joined(tmp_path / "two")
    assert "ew convert-trt" in caught.value.hint


def test_layers_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tiny.write_hf("llama", tmp_path / "hf"), tmp_path / "cut", LAYOUTS["pp2"])
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    (tmp_path / "cut" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match="2 layers"):
        joined(tmp_path / "cut")
