"""The graph as a plain OpenVINO model: its inputs, its memory, and what 8-bit weights cost."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest

from builder.checkpoint import write_checkpoint
from builder.families import Layout
from tests import tiny
from worker.openvino.graph import build_model

LARGEST_INT8_ERROR = 0.05  # of the logits' own spread


def logits(checkpoint: Path, precision: str, prompt: list[int]) -> npt.NDArray[np.float32]:
    model = build_model(checkpoint, precision)
    gc.collect()
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ids = np.array([prompt], dtype=np.int64)
    outputs = compiled(
        {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.size)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
    )
    return np.array(outputs["logits"])


@pytest.fixture(scope="module", params=["llama3", "qwen2-moe", "chatglm3", "baichuan2-13b"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_checkpoint(tiny.write_hf(request.param, folder / "hf"), folder / "made", Layout(dtype="bfloat16"))
    return folder / "made"


def test_int8_stays_close_to_exact(checkpoint: Path) -> None:
    prompt = list(range(5, 35))
    exact, rounded = logits(checkpoint, "exact", prompt), logits(checkpoint, "int8", prompt)
    error = float(np.sqrt(np.mean((exact - rounded) ** 2)) / exact.std())
    assert 0 < error < LARGEST_INT8_ERROR


def test_the_logits_cover_the_vocabulary_without_padding(checkpoint: Path) -> None:
    shape = build_model(checkpoint).output("logits").get_partial_shape()
    assert shape[2].get_length() in {tiny.CONFIGS[name].get("vocab_size", 276) for name in tiny.CONFIGS}


def test_padding_on_the_left_changes_no_logit(checkpoint: Path) -> None:
    """Without paged attention the mask counts: a padded row equals the row alone."""
    model = build_model(checkpoint)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ids = np.array([[0, 0, 7, 8, 9]], dtype=np.int64)
    outputs = compiled(
        {
            "input_ids": ids,
            "attention_mask": np.array([[0, 0, 1, 1, 1]], dtype=np.int64),
            "position_ids": np.array([[0, 0, 0, 1, 2]], dtype=np.int64),
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
    )
    alone = logits(checkpoint, "exact", [7, 8, 9])
    np.testing.assert_allclose(np.array(outputs["logits"])[0, 2:], alone[0], atol=1e-3)
