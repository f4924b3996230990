"""Workers that die, hang or never start; a server that is killed."""

from __future__ import annotations

import json
import signal
import stat
from pathlib import Path

import psutil
import pytest

from tests.worker.triton import Refused, Triton, tokens_of, wait_until
from worker.backend import SOURCE_ROOT

pytestmark = pytest.mark.e2e
LONG = 8000


def script(folder: Path, text: str) -> str:
    """An executable that is started in place of the worker's Python."""
    path = folder / "python"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def serves_again(triton: Triton, model: str) -> bool:
    try:
        return len(tokens_of([triton.generate(model)])) == 8
    except Refused as refused:
        assert "started again" in str(refused)
        return False


def test_a_killed_worker_ends_its_requests_and_comes_back(triton: Triton, package: Path) -> None:
    triton.add_model("killed", package)
    triton.load("killed")
    stream = triton.open_stream("killed", request_output_len=LONG)
    events = stream.events()
    next(events)
    [worker] = triton.workers("killed")
    worker.send_signal(signal.SIGKILL)
    last = list(events)[-1]
    assert "engine worker died (killed by signal 9)" in last["error"]
    stream.close()
    with pytest.raises(Refused, match=r"worker died \(killed by signal 9\).*started again"):
        triton.generate("killed")
    assert triton.active("killed") == 0
    wait_until(lambda: serves_again(triton, "killed"), 30.0)
    assert triton.metric("ew_worker_restarts", "killed") == 1
    [successor] = triton.workers("killed")
    assert successor.pid != worker.pid
    triton.unload("killed")
    wait_until(lambda: is_gone(successor), 10.0)


def test_a_hanging_worker_is_replaced(triton: Triton, package: Path) -> None:
    triton.add_model("hanging", package, stall_timeout_s=2)
    triton.load("hanging")
    stream = triton.open_stream("hanging", request_output_len=LONG)
    events = stream.events()
    next(events)
    [worker] = triton.workers("hanging")
    worker.send_signal(signal.SIGSTOP)
    last = list(events)[-1]
    assert "engine worker hung: silent for 2 s" in last["error"]
    stream.close()
    wait_until(lambda: serves_again(triton, "hanging"), 30.0)
    assert is_gone(worker)
    triton.unload("hanging")


FAKE_WORKER = """
import importlib.util, socket, sys, time
spec = importlib.util.spec_from_file_location("protocol", {protocol!r})
protocol = sys.modules["protocol"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(protocol)
end = socket.socket(fileno=int(sys.argv[2]))
end.sendall(protocol.encode_ready(protocol.Ready("fake", 288, 4, 100, 100, 1000, 32)))
end.recv(1)  # a request
{then}
time.sleep(60)
"""


def fake_worker(folder: Path, then: str) -> str:
    """A root whose worker is ready, waits for a request and does `then`."""
    (folder / "worker").mkdir()
    (folder / "worker" / "__init__.py").touch()
    text = FAKE_WORKER.format(protocol=str(SOURCE_ROOT / "worker" / "protocol.py"), then=then)
    (folder / "worker" / "__main__.py").write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ('end.sendall(b"Segmentation fault")', "sent what the bridge cannot read"),
        (
            "end.sendall(protocol.encode_stats(protocol.Stats(active=1, step_age_s=500.0)))",
            "hung: one step took more than 500 s",
        ),
        ("sys.exit(3)", r"died \(exit status 3\)"),
    ],
)
def test_a_worker_that_goes_wrong_is_ended_and_its_requests_told(
    triton: Triton, package: Path, tmp_path: Path, then: str, words: str
) -> None:
    name = f"wrong-{tmp_path.name}"
    triton.add_model(name, package, root=fake_worker(tmp_path, then))
    triton.load(name)
    [worker] = triton.workers(name)
    with pytest.raises(Refused, match=words):
        triton.generate(name)
    wait_until(lambda: is_gone(worker), 10.0)
    triton.unload(name)


def test_an_engine_that_cannot_start_says_why_when_it_is_loaded(triton: Triton, package: Path) -> None:
    triton.add_model("misconfigured", package, options={"precision": "float8"})
    with pytest.raises(Refused, match=r"precision is 'float8'.*render the model repository again"):
        triton.load("misconfigured")
    assert triton.workers("misconfigured") == []


def test_a_package_without_a_checkpoint_is_named(triton: Triton, tmp_path: Path) -> None:
    triton.add_model("empty", tmp_path)
    with pytest.raises(Refused, match=str(tmp_path)):
        triton.load("empty")


def test_a_package_that_is_not_there_is_named(triton: Triton, tmp_path: Path) -> None:
    triton.add_model("absent", tmp_path / "nothing")
    with pytest.raises(Refused, match="nothing is not there"):
        triton.load("absent")


def test_a_worker_that_crashes_at_once_shows_its_log(triton: Triton, package: Path, tmp_path: Path) -> None:
    triton.add_model("crashing", package, python=script(tmp_path, "echo no engine here >&2; exit 7"))
    with pytest.raises(Refused, match=r"exit status 7(.|\n|\\n)*no engine here"):
        triton.load("crashing")


def test_a_worker_that_is_never_ready_is_given_up(triton: Triton, package: Path, tmp_path: Path) -> None:
    triton.add_model("sleeping", package, python=script(tmp_path, "exec sleep 300"), start_timeout_s=1)
    with pytest.raises(Refused, match="not ready after 1 s"):
        triton.load("sleeping")
    children = psutil.Process(triton.process.pid).children(recursive=True)
    assert not [child for child in children if "sleep" in child.name()]


def test_a_python_that_is_not_there_is_named(triton: Triton, package: Path) -> None:
    triton.add_model("unspawned", package, python="/nowhere/python")
    with pytest.raises(Refused, match="/nowhere/python"):
        triton.load("unspawned")


def test_worker_json_that_is_broken_is_named(triton: Triton, package: Path) -> None:
    version = triton.add_model("garbled", package)
    (version / "worker.json").write_text("{")
    with pytest.raises(Refused, match=r"worker.json is not readable JSON"):
        triton.load("garbled")


def test_without_worker_json_the_model_path_names_the_package(triton: Triton, package: Path) -> None:
    version = triton.add_model("plain", package)
    (version / "worker.json").write_text(json.dumps({"root": str(Path(__file__).parents[2])}))
    with pytest.raises(Refused, match="gpt_model_path"):
        triton.load("plain")
    config = version.parent / "config.pbtxt"
    parameter = f'parameters: {{ key: "gpt_model_path" value: {{ string_value: "{package}/checkpoint" }} }}'
    config.write_text(config.read_text() + parameter)
    triton.load("plain")
    assert len(tokens_of([triton.generate("plain")])) == 8
    triton.unload("plain")


def test_nothing_outlives_a_killed_server(package: Path, graph_cache: Path, tmp_path: Path) -> None:
    server = Triton(tmp_path / "triton")
    try:
        server.wait_ready()
        server.add_model("tiny", package)
        server.load("tiny")
        stream = server.open_stream("tiny", request_output_len=LONG)
        next(stream.events())
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert server.workers("tiny")
    finally:
        server.process.kill()
        server.process.wait()
    wait_until(lambda: all(is_gone(child) for child in children), 10.0)
    stream.close()
