"""Hub ids through the real huggingface_hub client against a local server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from builder import hub
from common.paths import SOURCE_ROOT
from tests.builder.fake_hub import COMMIT, fake_hub
from tests.cli.ew import Answer


def _convert(model: str, endpoint: str, tmp_path: Path, *options: str) -> Answer:
    """In a process of its own: the client reads its settings when it is imported."""
    arguments = ["convert-trt", "--model", model, "--output", str(tmp_path / "out"), "--json", *options]
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return Answer(result.returncode, result.stdout, result.stderr)


def test_download_convert_and_revision(source: Path, tmp_path: Path) -> None:
    with fake_hub({"org/tiny": source}) as (endpoint, downloads):
        answer = _convert("org/tiny", endpoint, tmp_path, "--stage", "checkpoint", "--revision", "main")
    assert answer.code == 0, answer.err
    assert "modeling_llama.py" not in downloads
    manifest = (tmp_path / "out" / "ew.json").read_text()
    assert f'"revision": "{COMMIT}"' in manifest
    assert '"model": "org/tiny"' in manifest


def test_plan_downloads_no_weights(source: Path, tmp_path: Path) -> None:
    with fake_hub({"org/tiny": source}) as (endpoint, downloads):
        answer = _convert("org/tiny", endpoint, tmp_path, "--stage", "plan")
    assert answer.document["action"] == "planned"
    assert "config.json" in downloads
    assert not [name for name in downloads if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    ("model", "options", "code"),
    [
        ("org/gated", [], "hub_gated"),
        ("org/missing", [], "hub_not_found"),
        ("org/tiny", ["--revision", "v9"], "hub_revision"),
    ],
)
def test_refusals(model: str, options: list[str], code: str, source: Path, tmp_path: Path) -> None:
    with fake_hub({"org/tiny": source}) as (endpoint, _):
        answer = _convert(model, endpoint, tmp_path, *options)
    assert (answer.document["error"]["code"], answer.code) == (code, 7)
    assert not (tmp_path / "out").exists()


def test_unreachable(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        answer = _convert("org/tiny", f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path)
    assert (answer.document["error"]["code"], answer.code) == ("hub_unreachable", 7)


@pytest.mark.parametrize(
    ("model", "local"),
    [
        ("org/name", False),
        ("gpt2", False),
        ("./org/name", True),
        ("/models/x", True),
        ("a/b/c", True),
        ("~/x", True),
    ],
)
def test_what_counts_as_a_path(model: str, local: bool) -> None:
    assert hub.is_local(model) is local
