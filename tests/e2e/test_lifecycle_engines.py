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

    # One that is stopped leaves the other; its model is no longer known, and its ports are free.
    stopped = json.loads(two.run("stop", "--env", "right", "--json").stdout)
    assert stopped["models"] == ["second"]
    assert left_behind(f"{service_id}-2") == []
    assert two.status()["state"] == "ready"
    assert ask(two, key, "tiny")[0] == 200
    assert ask(two, key, "second")[0] == 404

    # It comes back as it was asked for, and one crash leaves the other serving.
    assert two.run("start", "--model", "second", "--env", "right").returncode == 0
    os.kill(engines(two)["left"]["pid"], signal.SIGKILL)
    wait_until(lambda: two.status()["state"] == "degraded")
    assert engines(two)["left"]["state"] == "ended" and engines(two)["right"]["state"] == "ready"
    assert ask(two, key, "second")[0] == 200
    status, answer = ask(two, key, "tiny")
    assert status == 503, answer

    # Started again, the crashed one is cleaned up first; the other is not disturbed.
    before = engines(two)["right"]["pid"]
    assert two.run("start", "--model", "tiny", "--env", "left").returncode == 0
    assert engines(two)["right"]["pid"] == before
    assert ask(two, key, "tiny")[0] == 200

    # A restart of one environment leaves the other's processes alone; a restart of all keeps both.
    assert two.run("restart", "--env", "left").returncode == 0
    assert engines(two)["right"]["pid"] == before
    again = json.loads(two.run("restart", "--json").stdout)
    assert {one["env"] for one in again["servers"]} == {"left", "right"}
    assert engines(two)["right"]["pid"] != before
    for model in ("tiny", "second"):
        assert ask(two, key, model)[0] == 200
    two.stop()
    assert left_behind(service_id) == left_behind(two.home.name) == []


def wait_until(true: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
