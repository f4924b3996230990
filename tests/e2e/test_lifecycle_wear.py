"""What a service meets in long use: cycles, idle models, dying workers, full disks, taken ports."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import SHM, Installation, left_behind

pytestmark = pytest.mark.e2e


def ask(installation: Installation, document: dict[str, Any], tokens: int = 4) -> tuple[int, dict[str, Any]]:
    """Status and document of a whole answer of the tiny model."""
    connection = http.client.HTTPConnection("127.0.0.1", installation.port, timeout=90)
    body = {"modelId": "tiny", "prompt": "hello", "maxTokens": tokens, "minTokens": tokens}
    key = Path(document["key_file"]).read_text().strip()
    connection.request("POST", "/api/v1/inference", json.dumps(body), {"X-API-Key": key})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def configure(installation: Installation, **settings: Any) -> None:
    """deploy/config.json with the tiny model."""
    entry: dict[str, Any] = {"engine": "cpu", "model_path": "models/tiny", "dtype": "float32"}
    entry.update(max_batch_size=8, max_input_len=64, max_output_len=64, **settings)
    (installation.home / "deploy").mkdir()
    (installation.home / "deploy" / "config.json").write_text(json.dumps({"models": {"tiny": entry}}))


def model(installation: Installation) -> dict[str, Any]:
    """What `status` says of the only model."""
    (found,) = installation.status()["models"]
    assert isinstance(found, dict)
    return found


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def run_cycles(installation: Installation, count: int) -> None:
    """Start and stop; after each cycle nothing of it is left, and the home folder does not grow."""
    sizes = []
    for _ in range(count):
        regions = set(SHM.iterdir())
        document = installation.start()
        service_id = installation.state()["service_id"]
        with urllib.request.urlopen(f"{document['url']}/health/ready") as response:
            assert response.status == 200
        installation.stop()
        assert left_behind(service_id) == []
        assert {region for region in set(SHM.iterdir()) - regions if service_id in region.name} == set()
        for port in document["ports"].values():
            socket.create_server(("127.0.0.1", port)).close()
        sizes.append(len(list((installation.home / "run").iterdir())))
    assert len(set(sizes)) == 1, sizes
    assert len(list((installation.home / "logs").iterdir())) <= 3 * 4


def test_three_cycles_leave_nothing(tiny: Installation) -> None:
    run_cycles(tiny, 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_cycles_leave_nothing(tiny: Installation) -> None:
    run_cycles(tiny, 20)


def test_an_idle_model_gives_its_memory_back_and_returns_for_a_request(tiny: Installation) -> None:
    configure(tiny, idle_unload_seconds=3)
    document = tiny.start()
    assert ask(tiny, document)[0] == 200
    loaded = tiny.status()
    worker = loaded["models"][0]
    wait_until(lambda: model(tiny)["state"] == "UNLOADED")
    wait_until(lambda: not Path(f"/proc/{worker['pid']}").exists())
    unloaded = tiny.status()
    assert unloaded["state"] == "ready"
    assert memory(unloaded) < memory(loaded) - 0.9 * worker["host_memory"]
    status, answer = ask(tiny, document)
    assert (status, answer["usage"]["completionTokens"]) == (200, 4)
    # Where this machine is slow it may be idle again by now; that a second worker served is in the log.
    assert (tiny.home / "logs" / "worker.log").read_text().count("INFO Ready:") == 2


def memory(status: dict[str, Any]) -> int:
    """Bytes of all processes of the service."""
    return sum(process["memory"] for process in status["processes"])


def test_a_worker_that_dies_comes_back_and_the_error_is_kept(tiny: Installation) -> None:
    document = tiny.start()
    worker = model(tiny)["pid"]
    os.kill(worker, signal.SIGKILL)
    answers: list[tuple[int, dict[str, Any]]] = []
    deadline = time.monotonic() + 60
    while not answers or answers[-1][0] != 200:
        assert time.monotonic() < deadline, answers
        answers.append(ask(tiny, document))
        time.sleep(0.1)
    for status, answer in answers[:-1]:
        assert status in (502, 503), answer
        assert answer["error"]["message"]
    again = model(tiny)
    assert again["pid"] not in (None, worker)
    assert "worker died (killed by signal 9)" in again["last_error"]
    assert "tiny" in tiny.run("status").stdout


def test_a_full_disk_under_the_logs_stops_no_answer(tiny: Installation) -> None:
    """/dev/full refuses every write with "No space left on device", as a full disk does."""
    (tiny.home / "logs").mkdir()
    for name in ("triton", "worker", "proxy"):
        (tiny.home / "logs" / f"{name}.log").symlink_to("/dev/full")
    document = tiny.start()
    for _ in range(3):
        status, answer = ask(tiny, document)
        assert (status, answer["usage"]["completionTokens"]) == (200, 4)
    assert tiny.status()["state"] == "ready"
    assert tiny.run("logs").returncode == 0
    service_id = tiny.state()["service_id"]
    tiny.stop()
    assert left_behind(service_id) == []


def test_records_of_another_boot_and_of_dead_processes_are_cleaned_up(tiny: Installation) -> None:
    tiny.start()
    state = tiny.state()
    tiny.stop()
    record = tiny.home / "run" / "service.json"
    for changed in ({"boot_id": "another boot"}, {}):
        record.write_text(json.dumps({**state, **changed}))
        done = tiny.run("status", "--json")
        assert (done.returncode, json.loads(done.stdout)["state"]) == (6, "stale")
        assert json.loads(tiny.run("stop", "--json").stdout)["was_running"] is False
        assert not record.exists()


def test_tritonservers_usual_ports_may_be_taken(tiny: Installation) -> None:
    taken = []
    for port in (8000, 8001, 8002):
        try:
            taken.append(socket.create_server(("127.0.0.1", port)))
        except OSError:  # taken already, which is as good
            continue
    try:
        document = tiny.start()
    finally:
        for server in taken:
            server.close()
    used = {port for name, port in document["ports"].items() if name != "proxy"}
    assert used.isdisjoint({8000, 8001, 8002})
    assert ask(tiny, document)[0] == 200


def test_a_start_on_another_port_beside_the_running_service_is_refused(tiny: Installation) -> None:
    tiny.start()
    done = tiny.run("start", "--model", tiny.model, "--port", str(tiny.port + 1), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "other_address"


def test_a_repository_that_lint_refuses_is_not_started(tiny: Installation) -> None:
    configure(tiny)
    assert tiny.run("render").returncode == 0
    (tiny.home / "model_repository" / "tiny-preprocessing" / "1" / "extra.py").write_text("def broken(:\n")
    done = tiny.run("start", "--model", "tiny", "--port", str(tiny.port), "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (4, "repository_lint")
    assert "extra.py" in error["message"]
    assert not (tiny.home / "run" / "service.json").exists()
