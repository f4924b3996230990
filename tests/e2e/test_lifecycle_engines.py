"""Several engine environments behind one proxy port: added, stopped, crashed and restarted one by one."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.ports import is_free
from tests.e2e.conftest import Installation, left_behind

pytestmark = pytest.mark.e2e


def make_environment(installation: Installation, name: str) -> Path:
    """A virtual environment of its own that finds the packages of this one; its interpreter."""
    folder = installation.home / ".cache" / "envs" / name
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    record = {
        "name": name,
        "engine": "cpu",
        "manager": "venv",
        "digest": "made-by-test",
        "prefix": str(folder),
        "done": ["create", "packages"],
        "finished": True,
        "packages": {"openvino-genai": None},
    }
    (folder.parent / f"{name}.json").write_text(json.dumps(record))
    return folder / "bin" / "python"


@pytest.fixture
def two(tiny: Installation) -> Installation:
    """A home with two packages and two environments of the cpu engine."""
    shutil.copytree(tiny.home / "models" / "tiny", tiny.home / "models" / "second")
    for name in ("left", "right"):
        make_environment(tiny, name)
    return tiny


def ask(installation: Installation, key: str, model: str) -> tuple[int, dict[str, Any]]:
    """Status and document of a short whole answer."""
    connection = http.client.HTTPConnection("127.0.0.1", installation.port, timeout=60)
    body = {"modelId": model, "prompt": "hello", "maxTokens": 4, "minTokens": 4}
    connection.request("POST", "/api/v1/inference", json.dumps(body), {"X-API-Key": key})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def engines(installation: Installation) -> dict[str, dict[str, Any]]:
    """What `status` says of each engine, by its environment."""
    return {engine["env"]: engine for engine in installation.status()["engines"]}


def worker_interpreters(installation: Installation) -> dict[str, str]:
    """Model -> interpreter of its worker, from the kernel."""
    found = {}
    for model in installation.status()["models"]:
        command = Path(f"/proc/{model['pid']}/cmdline").read_bytes().split(b"\0")
        found[model["model"]] = command[0].decode()
    return found


def test_two_environments_serve_two_models_through_one_port(two: Installation) -> None:
    first = two.start("--env", "left")
    added = json.loads(two.run("start", "--model", "models/second", "--env", "right", "--json").stdout)
    key = Path(added["key_file"]).read_text().strip()
    assert added["url"] == first["url"]
    assert added["pids"]["proxy"] == first["pids"]["proxy"]
    assert [(one["env"], one["models"]) for one in added["servers"]] == [
        ("left", ["tiny"]),
        ("right", ["second"]),
    ]
    assert len({port for one in added["servers"] for port in one["ports"].values()}) == 6
    for model in ("tiny", "second"):
        status, answer = ask(two, key, model)
        assert (status, answer["usage"]["completionTokens"]) == (200, 4)
    envs = two.home / ".cache" / "envs"
    assert worker_interpreters(two) == {
        "tiny": str(envs / "left" / "bin" / "python"),
        "second": str(envs / "right" / "bin" / "python"),
    }
    service_id = two.state()["service_id"]

    # A crash of one leaves the other serving.
    os.kill(engines(two)["left"]["pid"], signal.SIGKILL)
    wait_until(lambda: two.status()["state"] == "degraded")
    assert {env: engine["state"] for env, engine in engines(two).items()} == {
        "left": "ended",
        "right": "ready",
    }
    assert ask(two, key, "second")[0] == 200
    status, answer = ask(two, key, "tiny")
    assert (status, answer["error"]["code"]) == (503, "model_not_ready")

    # Restarted alone, it comes back where it was; the other is not disturbed.
    before = engines(two)["right"]["pid"]
    again = json.loads(two.run("restart", "--env", "left", "--json").stdout)
    assert sorted((one["env"], *one["models"]) for one in again["servers"]) == [
        ("left", "tiny"),
        ("right", "second"),
    ]
    assert engines(two)["right"]["pid"] == before
    assert ask(two, key, "tiny")[0] == 200

    # One that is stopped leaves the other; its model is no longer known, and nothing of it is left.
    gone = engines(two)["right"]
    stopped = json.loads(two.run("stop", "--env", "right", "--json").stdout)
    assert stopped["models"] == ["second"]
    assert left_behind(f"{service_id}-2") == []
    assert all(is_free(port) for port in gone["ports"].values())
    assert two.status()["state"] == "ready"
    assert ask(two, key, "tiny")[0] == 200
    assert ask(two, key, "second")[0] == 404
    two.stop()
    assert left_behind(service_id) == []


def test_one_start_of_two_environments_named_in_the_config(two: Installation) -> None:
    sizes = {"max_batch_size": 8, "max_input_len": 64, "max_output_len": 64, "dtype": "float32"}
    entries = {
        model: {"engine": "cpu", "model_path": f"models/{model}", "env": env, **sizes}
        for model, env in (("tiny", "left"), ("second", "right"))
    }
    (two.home / "deploy").mkdir()
    (two.home / "deploy" / "config.json").write_text(json.dumps({"models": entries}))
    done = two.run("start", "--model", "tiny", "--model", "second", "--port", str(two.port), "--json")
    document = json.loads(done.stdout)
    key = Path(document["key_file"]).read_text().strip()
    assert [(one["env"], one["models"]) for one in document["servers"]] == [
        ("left", ["tiny"]),
        ("right", ["second"]),
    ]
    for model in ("tiny", "second"):
        assert ask(two, key, model)[0] == 200
    for model in two.status()["models"]:
        assert (model["state"], model["served"]) == ("READY", 1)
        assert model["host_memory"] > 10 * 2**20
    told = two.run("logs", "second", "-n", "400").stdout
    assert "second-tensorrt_llm" in told and "loading: tiny" not in told


def wait_until(true: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
