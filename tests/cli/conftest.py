from __future__ import annotations

from pathlib import Path

import pytest

from tests.builder.made import make_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sharded Llama of 0.4 MB with tokenizer files."""
    return make_source(tmp_path / "hf")


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An installation of its own, on a machine without GPU tools."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("EW_TRTLLM_BUILD", raising=False)
    monkeypatch.setenv("EW_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
