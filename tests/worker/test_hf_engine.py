"""The cuda-hf engine for real, on the CPU. Not in the default run, because it needs PyTorch:

python -m venv hf && hf/bin/pip install torch transformers==5.23.0 psutil
EW_TORCH_PYTHON=hf/bin/python pytest -m slow tests/worker/test_hf_engine.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import tiny
from tests.worker.checks import names_of_checks, problems_told
from tests.worker.triton import Refused, Triton, tokens_of, wait_until
from worker.backend import SOURCE_ROOT

pytestmark = pytest.mark.slow
EXPECTED = json.loads((Path(__file__).parent / "data" / "expected_tokens.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def python() -> str:
    named = os.environ.get("EW_TORCH_PYTHON")
    assert named, "EW_TORCH_PYTHON must name a Python with PyTorch, transformers and psutil."
    return named


@pytest.fixture(scope="module")
def problems(python: str) -> dict[str, str]:
    command = [python, "-m", "tests.worker.hf_checks"]
    done = subprocess.run(command, cwd=SOURCE_ROOT, stdout=subprocess.PIPE, text=True, timeout=280)
    return problems_told(done.stdout)


@pytest.mark.parametrize("name", names_of_checks("hf_checks"))
def test_check(name: str, problems: dict[str, str]) -> None:
    assert problems[name] == ""


@pytest.mark.e2e
def test_it_streams_from_the_real_tritonserver(triton: Triton, python: str, tmp_path: Path) -> None:
    checkpoint = tiny.write_hf("qwen3", tmp_path)
    options = {"dtype": "float32", "max_batch_size": 8, "kv_cache_tokens": 4096}
    triton.add_model("hf", checkpoint, engine="cuda-hf", python=python, options=options)
    triton.load("hf")
    prompts = tiny.prompts("qwen3")
    for prompt, expected in zip(prompts, EXPECTED["qwen3"], strict=True):
        events = triton.stream("hf", input_ids=prompt, request_output_len=tiny.NEW_TOKENS)
        assert tokens_of(events) == expected
        assert len(events) > 1
    stream = triton.open_stream("hf", input_ids=prompts[0], request_output_len=80)
    next(stream.events())
    stream.close()
    wait_until(lambda: triton.active("hf") == 0)
    with pytest.raises(Refused, match="token ids are 0 to"):
        triton.generate("hf", input_ids=[99999])
    triton.unload("hf")
