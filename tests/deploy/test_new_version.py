"""A new version of a model on one server, as docs/deploy.md says: beside the old, and no stream dropped."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import requests

from tests.e2e.conftest import Installation
from tests.e2e.conftest import installation as installation
from tests.e2e.conftest import prepared_model as prepared_model

pytestmark = pytest.mark.e2e

TOKENS = 120


def both_versions(installation: Installation, package: str) -> None:
    """deploy/config.json with two ids; one package serves for both."""
    entry = {"engine": "cpu", "model_path": f"models/{package}", "max_input_len": 512, "precision": "exact"}
    config = installation.home / "deploy" / "config.json"
    config.write_text(json.dumps({"models": {"m-v1": entry, "m-v2": entry}}))


def ask(
    installation: Installation, key: str, model: str, tokens: int, *, stream: bool = False
) -> requests.Response:
    path = "/api/v1/inference/stream" if stream else "/api/v1/inference"
    return requests.post(
        f"http://127.0.0.1:{installation.port}{path}",
        json={"modelId": model, "prompt": "Count.", "maxTokens": tokens, "minTokens": tokens},
        headers={"X-API-Key": key},
        stream=stream,
        timeout=120,
    )


def test_the_old_version_goes_after_its_last_stream(installation: Installation, prepared_model: str) -> None:
    both_versions(installation, prepared_model)
    started = installation.run("start", "--model", "m-v1", "--port", str(installation.port), "--json")
    key = Path(json.loads(started.stdout)["key_file"]).read_text().strip()

    added = installation.run("start", "--model", "m-v2", "--json")
    assert added.returncode == 0, added.stdout + added.stderr
    assert ask(installation, key, "m-v2", 2).status_code == 200

    lines = ask(installation, key, "m-v1", TOKENS, stream=True).iter_lines()
    first = next(lines)
    stop = subprocess.Popen(
        installation.command("stop", "--model", "m-v1", "--drain", "120", "--json"),
        env=installation.spawn_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    events = [line.removeprefix(b"data: ") for line in (first, *lines) if line]
    assert events[-1] == b"[DONE]"
    assert json.loads(events[-2])["usage"]["completionTokens"] == TOKENS
    output, _ = stop.communicate(timeout=120)
    assert stop.returncode == 0, output
    assert ask(installation, key, "m-v1", 2).status_code == 503
    assert ask(installation, key, "m-v2", 2).status_code == 200
