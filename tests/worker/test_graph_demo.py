"""The demo model, converted, says token for token what transformers says from the original checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from builder.checkpoint import write_checkpoint
from builder.families import Layout
from runtime.demo_checkpoint import demo_checkpoint
from tests.worker.generation import generate
from worker.openvino.graph import write_ir

EXPECTED = json.loads((Path(__file__).parent / "data" / "expected_demo.json").read_text(encoding="utf-8"))
NEW_TOKENS = 32
CHUNK_TOKENS = 256


def test_demo_model_generates_the_tokens_of_transformers(tmp_path: Path) -> None:
    write_checkpoint(demo_checkpoint(), tmp_path / "checkpoint", Layout(dtype="float16"))
    write_ir(tmp_path / "checkpoint", tmp_path / "ir")
    rows = EXPECTED.values()
    outputs = generate(tmp_path / "ir", [row["ids"] for row in rows], NEW_TOKENS, CHUNK_TOKENS)
    # The reference stops at its end token, this generation does not.
    made = [output[: len(row["tokens"])] for output, row in zip(outputs, rows, strict=True)]
    assert made == [row["tokens"] for row in rows]
