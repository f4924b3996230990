"""The guide's commands, one after the other as they stand there, with the cpu engine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.paths import SOURCE_ROOT
from tests.e2e.conftest import byte_tokenizer, free_port
from tests.tiny import write_hf

pytestmark = pytest.mark.e2e

CONFIG = {
    "models": {
        "tiny-llama-trt": {
            "engine": "cpu",
            "model_path": "models/tiny-llama",
            "max_batch_size": 8,
            "max_input_len": 64,
            "max_output_len": 64,
            "dtype": "float32",
            "tensor_parallel_size": 1,
        }
    }
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with `./ew`, the command line of this checkout, and a Hugging Face checkpoint."""
    main = SOURCE_ROOT / "cli" / "__main__.py"
    launcher = tmp_path / "ew"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(main)])} "$@"\n')
    launcher.chmod(0o755)
    source = write_hf("llama", tmp_path / "Tiny-Llama")
    (source / "tokenizer.json").write_text(json.dumps(byte_tokenizer()), encoding="utf-8")
    yield tmp_path
    shell(tmp_path, "./ew stop --drain 1")


def shell(folder: Path, line: str) -> str:
    """stdout of a line as a user types it in that folder."""
    environment = {**os.environ, "EW_HOME": str(folder)}
    done = subprocess.run(
        ["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_guides_sequence_runs_as_it_stands(folder: Path) -> None:
    port = free_port()
    assert "ready" in shell(folder, "./ew setup --engine cpu")
    shell(
        folder,
        "./ew convert-trt --model ./Tiny-Llama --output models/tiny-llama --dtype float32 --stage checkpoint "
        "--max-batch-size 8 --max-input-len 64 --max-output-len 64",
    )
    (folder / "deploy").mkdir()
    (folder / "deploy" / "config.json").write_text(json.dumps(CONFIG))
    started = shell(folder, f"./ew start --engine cpu --model tiny-llama-trt --port {port}")
    assert f"Serving tiny-llama-trt at http://localhost:{port}" in started
    key = (folder / "run" / "api_key").read_text().strip()
    answer = shell(
        folder,
        f"curl -sN -X POST http://localhost:{port}/api/v1/inference/stream "
        f'-H "Content-Type: application/json" -H "X-API-Key: {key}" '
        """-d '{"modelId": "tiny-llama-trt", "prompt": "hello", "maxTokens": 8, "minTokens": 8}'""",
    )
    events = answer.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["usage"]["completionTokens"] == 8
    shown = shell(folder, "./ew status")
    assert "ready" in shown and "tiny-llama-trt" in shown
    assert "Ready" in shell(folder, "./ew logs worker")
    assert "tiny-llama-trt" in shell(folder, "./ew logs tiny-llama-trt")
    assert "Stopped tiny-llama-trt" in shell(folder, "./ew stop")
