"""Every family generates the tokens that transformers generates, in float32, through paged attention."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.checkpoint import write_checkpoint
from builder.families import Layout
from tests import tiny
from tests.worker.generation import Generator, generate
from worker.openvino.graph import write_ir

EXPECTED: dict[str, list[list[int]]] = json.loads(
    (Path(__file__).parent / "data" / "expected_tokens.json").read_text(encoding="utf-8")
)


# What config.json alone does not say.
MODEL_TYPES = {"chatglm2": "chatglm2", "baichuan1-13b": "baichuan1"}


def convert(name: str, folder: Path, layout: Layout) -> Path:
    source = tiny.write_hf(name, folder / "hf")
    write_checkpoint(source, folder / "checkpoint", layout, model_type=MODEL_TYPES.get(name))
    return folder / "checkpoint"


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("name", list(tiny.CONFIGS))
def test_generates_the_tokens_of_transformers(name: str, tp_size: int, tmp_path: Path) -> None:
    checkpoint = convert(name, tmp_path, Layout(dtype="float32", tp_size=tp_size))
    write_ir(checkpoint, tmp_path / "ir", window=tiny.CONFIGS[name].get("sliding_window"))
    assert generate(tmp_path / "ir", tiny.prompts(name), tiny.NEW_TOKENS) == EXPECTED[name]


@pytest.mark.parametrize("name", ["llama3", "mistral-window", "qwen1", "baichuan2-13b"])
def test_cached_prefixes_change_no_token(name: str, tmp_path: Path) -> None:
    checkpoint = convert(name, tmp_path, Layout(dtype="float32"))
    write_ir(checkpoint, tmp_path / "ir", window=tiny.CONFIGS[name].get("sliding_window"))
    generator = Generator(tmp_path / "ir")
    generator.generate(tiny.prompts(name), tiny.NEW_TOKENS)
    assert generator.generate(tiny.prompts(name), tiny.NEW_TOKENS) == EXPECTED[name]


@pytest.mark.parametrize("name", ["llama", "mixtral", "glm-4"])
def test_bfloat16_checkpoints_are_widened_without_loss(name: str, tmp_path: Path) -> None:
    checkpoint = convert(name, tmp_path, Layout(dtype="bfloat16", pp_size=2))
    write_ir(checkpoint, tmp_path / "ir")
    assert generate(tmp_path / "ir", tiny.prompts(name), tiny.NEW_TOKENS) == EXPECTED[name]
