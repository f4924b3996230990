from __future__ import annotations

from pathlib import Path

import pytest

from common.paths import Home
from tests.builder.made import make_source
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sharded Llama of 0.4 MB with tokenizer files."""
    return make_source(tmp_path / "hf")


@pytest.fixture(autouse=True)
def no_gpu_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever this machine has: no trtllm-build and no nvidia-smi, unless a test brings its own."""
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv("EW_TRTLLM_BUILD", raising=False)
    monkeypatch.setenv("EW_HOME", str(tmp_path / "home"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home folder with the package models/m."""
    home = Home(tmp_path / "ew")
    make_package(home.root / "models" / "m", byte_level(), settings={"eos_token": "<|im_end|>"})
    return home
