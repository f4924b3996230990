"""A new version of a model on one server, as docs/deploy.md says: beside the old, and no stream dropped."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import requests

from tests.e2e.conftest import LONG_ANSWER, Installation
from tests.e2e.conftest import long as long
from tests.e2e.conftest import long_package as long_package

pytestmark = pytest.mark.e2e


def both_versions(installation: Installation) -> None:
    """deploy/config.json with two ids; one package serves for both."""
    entry = {"engine": "cpu", "model_path": installation.model, "max_input_len": 64, "precision": "exact"}
    entry["max_output_len"] = LONG_ANSWER
    config = installation.home / "deploy" / "config.json"
    config.parent.mkdir()
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


def test_the_old_version_goes_after_its_last_stream(long: Installation) -> None:
    both_versions(long)
    started = long.run("start", "--model", "m-v1", "--port", str(long.port), "--json")
    key = Path(json.loads(started.stdout)["key_file"]).read_text().strip()

    added = long.run("start", "--model", "m-v2", "--json")
    assert added.returncode == 0, added.stdout + added.stderr
    assert ask(long, key, "m-v2", 2).status_code == 200

    lines = ask(long, key, "m-v1", LONG_ANSWER, stream=True).iter_lines()
    first = next(lines)
    stop = subprocess.Popen(
        long.command("stop", "--model", "m-v1", "--drain", "120", "--json"),
        env=long.spawn_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    events = [line.removeprefix(b"data: ") for line in (first, *lines) if line]
    assert events[-1] == b"[DONE]"
    assert json.loads(events[-2])["usage"]["completionTokens"] == LONG_ANSWER
    output, _ = stop.communicate(timeout=120)
    assert stop.returncode == 0, output
    assert ask(long, key, "m-v1", 2).status_code == 503
    assert ask(long, key, "m-v2", 2).status_code == 200
