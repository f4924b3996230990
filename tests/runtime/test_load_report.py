"""Unloading a model: a worker that ended is counted, also where its memory cannot be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime import client, loading
from runtime.client import Endpoint
from runtime.processes import SERVICE_VARIABLE
from tests.runtime.conftest import Spawn
from tests.runtime.test_teardown import SLEEP, recorded, service_id

__all__ = ["service_id"]  # a fixture


@pytest.mark.parametrize("has_worker", [True, False])
def test_a_worker_whose_memory_is_unknown_is_counted(
    ew_home: Path,
    spawn: Spawn,
    service_id: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    has_worker: bool,
) -> None:
    mark = {SERVICE_VARIABLE: service_id}
    triton, proxy = (spawn(SLEEP, **mark) for _ in range(2))
    name = "demo1-tensorrt_llm" if has_worker else "other-tensorrt_llm"
    worker = subprocess.Popen([sys.executable, "-c", SLEEP, "worker", "--name", name], env=mark)
    request.addfinalizer(worker.kill)

    def unload(endpoint: Endpoint, model: str, *, loaded: bool) -> str:
        worker.kill()
        worker.wait()
        return "unloaded"

    recorded(service_id, triton.pid, proxy.pid)
    monkeypatch.setenv(client.KEY_VARIABLE, "key")
    monkeypatch.setattr(client, "set_loaded", unload)
    monkeypatch.setattr(loading, "memory_of", lambda pid: 0)
    report = loading.unload("demo1", drain_seconds=1)
    assert (report.state, report.workers, report.memory_freed) == ("unloaded", int(has_worker), 0)
