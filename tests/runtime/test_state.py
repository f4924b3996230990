"""The record of a running service, judged against what really runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import pytest

from common.errors import ServiceError
from runtime import state
from runtime.launchers.service import LaunchOptions
from runtime.lifecycle import as_request, launch_options
from runtime.ports import TritonPorts
from runtime.processes import SERVICE_VARIABLE, ProcessRef, boot_id
from runtime.state import Server, Service
from runtime.status import judged, status
from tests.runtime.conftest import Spawn

MARK = {SERVICE_VARIABLE: "test-state"}
SLEEP = "import time; print('up', flush=True); time.sleep(60)"


def server(number: int = 1, pid: int | None = None, **changes: object) -> Server:
    """A ready server of `demo` and its number."""
    process = ProcessRef.of(pid) if pid else None
    record = Server(f"test-state-{number}", "cpu", (f"demo{number}",), TritonPorts(), time.time(), "ready")
    return record.with_changes(**{"process": process, **changes})


def service(*servers: Server, **changes: object) -> Service:
    record = Service(
        service_id="test-state",
        phase="ready",
        boot_id=boot_id(),
        started_at=time.time(),
        host="127.0.0.1",
        port=8080,
        key_file="/run/api_key",
        servers=servers or (server(),),
    )
    return record.with_changes(**changes)


def test_a_record_comes_back_as_it_was_saved(ew_home: Path) -> None:
    one = server(process=ProcessRef(1, 2), stop_command=("docker", "stop"), ready_after=1.5)
    record = service(one, server(2), proxy=ProcessRef(3, 4), ready_after=1.5)
    state.save(record)
    assert state.load() == record
    state.forget()
    assert state.load() is None


def test_health_is_what_the_processes_say(ew_home: Path, spawn: Spawn) -> None:
    first, proxy = spawn(SLEEP, **{SERVICE_VARIABLE: "test-state-1"}), spawn(SLEEP, **MARK)
    record = service(server(1, first.pid), proxy=ProcessRef.of(proxy.pid))
    assert record.health() == "ready"
    assert record.with_changes(phase="starting").health() == "starting"
    first.kill()
    first.wait()
    assert record.health() == "broken"
    proxy.kill()
    proxy.wait()
    assert record.health() == "stale"


def test_a_service_that_lost_one_of_two_servers_is_degraded(ew_home: Path, spawn: Spawn) -> None:
    first, second = (spawn(SLEEP, **{SERVICE_VARIABLE: f"test-state-{n}"}) for n in (1, 2))
    proxy = spawn(SLEEP, **MARK)
    record = service(server(1, first.pid), server(2, second.pid), proxy=ProcessRef.of(proxy.pid))
    assert record.health() == "ready"
    assert record.with_server(server(3, phase="starting")).health() == "ready"
    second.kill()
    second.wait()
    assert record.health() == "degraded"
    assert record.without_server(record.servers[1]).health() == "ready"
    proxy.kill()
    proxy.wait()
    assert record.health() == "broken"


def test_servers_are_numbered_and_found_by_model() -> None:
    record = service(server(1), server(4))
    assert record.next_server_id() == "test-state-5"
    assert record.models == ("demo1", "demo4")
    assert record.server_of("demo4") == record.servers[1]
    assert record.server_of("other") is None
    assert record.with_server(server(4, phase="stopping")).servers[1].phase == "stopping"


def test_after_a_reboot_the_record_is_stale_even_if_pids_are_taken(ew_home: Path, spawn: Spawn) -> None:
    child = spawn(SLEEP)
    record = service(server(1, child.pid), boot_id="another boot", proxy=ProcessRef.of(child.pid))
    assert record.health() == "stale"
    assert record.live_processes() == []


def test_a_start_that_was_killed_shows_as_broken(ew_home: Path, spawn: Spawn) -> None:
    child = spawn(SLEEP, **MARK)
    state.save(service(server(1, child.pid, phase="starting"), phase="starting"))
    assert status()["state"] == "broken"
    with state.exclusive():
        assert status()["state"] == "starting"


@pytest.mark.parametrize(
    ("health", "models", "proxy_ready", "told"),
    [
        ("ready", ["READY", "READY"], True, "ready"),
        ("ready", ["READY", "UNLOADED"], True, "ready"),
        ("ready", ["READY", "UNLOADING"], True, "ready"),
        ("ready", ["UNLOADED", "UNLOADED"], False, "unloaded"),
        ("ready", ["UNLOADED"], True, "ready"),
        ("ready", ["READY", "UNAVAILABLE"], False, "degraded"),
        ("ready", ["UNREACHABLE"], False, "degraded"),
        ("ready", ["READY"], False, "degraded"),
        ("degraded", ["READY", "UNREACHABLE"], False, "degraded"),
        ("broken", ["UNLOADED"], False, "broken"),
    ],
)
def test_only_models_that_are_meant_to_serve_count(
    health: str, models: list[str], proxy_ready: bool, told: str
) -> None:
    assert judged(health, models, proxy_ready=proxy_ready) == told


def test_a_log_that_cannot_be_read_hides_nothing_else(ew_home: Path, spawn: Spawn) -> None:
    child = spawn(SLEEP, **MARK)
    state.save(service(server(1, child.pid), phase="ready"))
    (ew_home / "logs").mkdir()
    (ew_home / "logs" / "triton.log").symlink_to("/proc/self/mem")  # no user can read its beginning
    (ew_home / "logs" / "proxy.log").write_text("error: it fell\n")
    assert status()["last_errors"] == {"proxy": "error: it fell"}


def test_a_restart_asks_for_what_the_start_asked(ew_home: Path) -> None:
    launch = LaunchOptions(env="ew-trt", gpus=(0, 2), triton_options=("--log-verbose=1",))
    state.save(service(server(options=asdict(launch)), host="0.0.0.0", port=9000, timeout=60.0, drain=7.0))
    recorded = state.load()
    assert recorded is not None
    request = as_request(recorded)
    assert (request.host, request.port, request.timeout, request.drain) == ("0.0.0.0", 9000, 60.0, 7.0)
    assert launch_options(recorded.servers[0]) == launch


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
