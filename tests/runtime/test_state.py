"""The record of a running service, judged against what really runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import pytest

from common.errors import ServiceError
from runtime import state
from runtime.launchers.service import LaunchOptions
from runtime.lifecycle import StartRequest, last_request
from runtime.processes import SERVICE_VARIABLE, ProcessRef, boot_id
from runtime.state import Ports, Service
from runtime.status import status
from tests.runtime.conftest import Spawn

SLEEP = "import time; print('up', flush=True); time.sleep(60)"


def service(**changes: object) -> Service:
    record = Service(
        service_id="test-state",
        phase="ready",
        boot_id=boot_id(),
        started_at=time.time(),
        engine="cpu",
        models=("demo",),
        host="127.0.0.1",
        ports=Ports(8080, 8000, 8001, 8002),
        key_file="/run/api_key",
        triton=None,
        proxy=None,
    )
    return record.with_changes(**changes)


def test_a_record_comes_back_as_it_was_saved(ew_home: Path) -> None:
    record = service(triton=ProcessRef(1, 2), proxy=ProcessRef(3, 4), ready_after=1.5)
    state.save(record)
    assert state.load() == record
    state.forget()
    assert state.load() is None


def test_health_is_what_the_processes_say(ew_home: Path, spawn: Spawn) -> None:
    mark = {SERVICE_VARIABLE: "test-state"}
    first, second = spawn(SLEEP, **mark), spawn(SLEEP, **mark)
    record = service(triton=ProcessRef.of(first.pid), proxy=ProcessRef.of(second.pid))
    assert record.health() == "ready"
    assert record.with_changes(phase="starting").health() == "starting"
    first.kill()
    first.wait()
    assert record.health() == "broken"
    second.kill()
    second.wait()
    assert record.health() == "stale"


def test_after_a_reboot_the_record_is_stale_even_if_pids_are_taken(ew_home: Path, spawn: Spawn) -> None:
    child = spawn(SLEEP)
    record = service(boot_id="another boot", triton=ProcessRef.of(child.pid), proxy=ProcessRef.of(child.pid))
    assert record.health() == "stale"
    assert record.live_processes() == []


def test_a_start_that_was_killed_shows_as_broken(ew_home: Path, spawn: Spawn) -> None:
    child = spawn(SLEEP, **{SERVICE_VARIABLE: "test-state"})
    state.save(service(phase="starting", triton=ProcessRef.of(child.pid)))
    assert status()["state"] == "broken"
    with state.exclusive():
        assert status()["state"] == "starting"


def test_a_restart_asks_for_what_the_start_asked(ew_home: Path) -> None:
    launch = LaunchOptions(env="ew-trt", gpus=(0, 2), triton_options=("--log-verbose=1",))
    request = StartRequest(("demo",), "cuda-trt", "0.0.0.0", 9000, 60.0, launch)
    state.save(service(request=asdict(request)))
    recorded = state.load()
    assert recorded is not None
    assert last_request(recorded) == request


@pytest.mark.parametrize("text", ["", "{", "[]", '{"service_id": 1}'])
def test_an_unreadable_record_is_named(ew_home: Path, text: str) -> None:
    state.state_path().parent.mkdir(parents=True)
    state.state_path().write_text(text)
    with pytest.raises(ServiceError) as caught:
        state.load()
    assert caught.value.code == "state_unreadable"
    assert str(state.state_path()) in caught.value.what


def test_two_cannot_start_or_stop_at_once(ew_home: Path) -> None:
    with state.exclusive(), pytest.raises(ServiceError) as caught, state.exclusive():
        pass
    assert caught.value.code == "busy"
    with state.exclusive():
        pass


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://localhost:8080"),
        ("0.0.0.0", "http://localhost:8080"),
        ("10.0.0.5", "http://10.0.0.5:8080"),
    ],
)
def test_the_url_is_one_that_can_be_called(host: str, url: str) -> None:
    assert service(host=host).url == url
