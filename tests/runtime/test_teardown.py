"""Stopping: orderly, stubborn, half-dead and long-gone services all end with nothing left."""

from __future__ import annotations

import errno
import json
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ServiceError, UsageError
from runtime import launch, nvidia, state, teardown
from runtime.ports import TritonPorts
from runtime.processes import SERVICE_VARIABLE, ProcessRef, boot_id
from runtime.state import Server, Service
from tests.runtime.conftest import Spawn

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


@pytest.fixture
def service_id() -> Iterator[str]:
    name = f"test{uuid.uuid4().hex[:8]}"
    yield name
    for region in launch.SHM_FOLDER.glob(f"ew-{name}-*"):
        region.unlink()


def recorded(service_id: str, triton: int | None, proxy: int | None, **changes: object) -> Service:
    """A saved service of these pids on free ports."""
    record = Service(
        service_id=service_id,
        phase="ready",
        boot_id=boot_id(),
        started_at=time.time(),
        host="127.0.0.1",
        port=18180,
        key_file="",
        servers=(server(service_id, 1, triton),),
        proxy=ProcessRef.of(proxy) if proxy else None,
    )
    return state.save(record.with_changes(**changes))


def server(service_id: str, number: int, pid: int | None, **changes: object) -> Server:
    ports = TritonPorts(*(18100 + 10 * number + place for place in range(3)))
    process = ProcessRef.of(pid) if pid else None
    record = Server(f"{service_id}-{number}", "cpu", (f"demo{number}",), ports, time.time(), "ready")
    return record.with_changes(**{"process": process, **changes})


def leave_region(service_id: str) -> Path:
    region = Path(f"{launch.SHM_FOLDER}/{launch.shm_prefix(service_id)}region")
    region.write_bytes(b"x")
    return region


def test_stop_ends_everything_and_forgets(ew_home: Path, spawn: Spawn, service_id: str) -> None:
    mark = {SERVICE_VARIABLE: service_id}
    triton, proxy, worker = (spawn(SLEEP, **mark) for _ in range(3))
    region = leave_region(service_id)
    recorded(service_id, triton.pid, proxy.pid)
    report = teardown.stop(drain_seconds=5)
    assert (report.was_running, report.models, report.killed) == (True, ("demo1",), 0)
    assert [child.wait() for child in (triton, proxy, worker)] == [-signal.SIGTERM] * 3
    assert not region.exists()
    assert state.load() is None


def test_what_ignores_sigterm_is_killed_and_counted(ew_home: Path, spawn: Spawn, service_id: str) -> None:
    proxy = spawn(STUBBORN, **{SERVICE_VARIABLE: service_id})
    recorded(service_id, None, proxy.pid)
    report = teardown.stop(drain_seconds=0.3)
    assert report.killed == 1
    assert proxy.wait() == -signal.SIGKILL


def test_a_service_whose_triton_died_is_ended_with_its_orphans(
    ew_home: Path, spawn: Spawn, service_id: str
) -> None:
    mark = {SERVICE_VARIABLE: service_id}
    triton, proxy, worker = (spawn(SLEEP, **mark) for _ in range(3))
    service = recorded(service_id, triton.pid, proxy.pid)
    triton.kill()
    triton.wait()
    assert service.health() == "broken"
    assert teardown.stop(drain_seconds=1).was_running
    assert proxy.wait() == worker.wait() == -signal.SIGTERM


def test_a_record_of_another_boot_is_dropped_and_nothing_signalled(
    ew_home: Path, spawn: Spawn, service_id: str
) -> None:
    other = spawn(SLEEP)
    region = leave_region(service_id)
    recorded(service_id, other.pid, None, boot_id="another boot")
    assert not teardown.stop().was_running
    assert other.poll() is None
    assert not region.exists()
    assert state.load() is None


def test_stop_twice_says_that_nothing_runs(ew_home: Path) -> None:
    assert not teardown.stop().was_running


def test_one_of_two_servers_ends_with_its_own_processes_and_memory_only(
    ew_home: Path, spawn: Spawn, service_id: str
) -> None:
    first, second, worker = (spawn(SLEEP, **{SERVICE_VARIABLE: f"{service_id}-{n}"}) for n in (1, 2, 2))
    proxy = spawn(SLEEP, **{SERVICE_VARIABLE: service_id})
    kept, gone = (leave_region(f"{service_id}-{n}") for n in (1, 2))
    other = server(service_id, 2, second.pid, options={"env": "right"})
    recorded(service_id, first.pid, proxy.pid, servers=(server(service_id, 1, first.pid), other))
    report = teardown.stop(drain_seconds=1, env="right")
    assert (report.models, report.killed) == (("demo2",), 0)
    assert second.wait() == worker.wait() == -signal.SIGTERM
    assert first.poll() is None and proxy.poll() is None
    assert kept.exists() and not gone.exists()
    left = state.load()
    assert left is not None and left.models == ("demo1",) and left.health() == "ready"
    routes = json.loads((ew_home / "run" / "routes.json").read_text())["tritonservers"]
    assert [route["models"] for route in routes] == [["demo1"]]
    assert teardown.stop(drain_seconds=1, engine="cpu").models == ("demo1",)
    assert proxy.wait() == first.wait() == -signal.SIGTERM
    assert not (ew_home / "run" / "routes.json").exists()


def test_an_engine_that_does_not_run_is_named(ew_home: Path, spawn: Spawn, service_id: str) -> None:
    proxy = spawn(SLEEP, **{SERVICE_VARIABLE: service_id})
    recorded(service_id, None, proxy.pid)
    with pytest.raises(UsageError) as caught:
        teardown.stop(engine="cuda-vllm")
    assert caught.value.code == "not_running"
    assert "cpu" in caught.value.hint
    assert proxy.poll() is None
    teardown.stop(drain_seconds=1)


def test_a_port_that_stays_open_is_told(ew_home: Path, spawn: Spawn, service_id: str) -> None:
    proxy = spawn(SLEEP, **{SERVICE_VARIABLE: service_id})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        recorded(service_id, None, proxy.pid, port=port)
        with pytest.raises(ServiceError) as caught:
            teardown.stop(drain_seconds=1)
    assert caught.value.code == "stop_incomplete"
    assert f"port {port}" in caught.value.what
    assert not teardown.stop().was_running


def test_a_full_disk_does_not_keep_a_service_alive(
    ew_home: Path, spawn: Spawn, service_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton, proxy = (spawn(SLEEP, **{SERVICE_VARIABLE: mark}) for mark in (f"{service_id}-1", service_id))
    recorded(service_id, triton.pid, proxy.pid)

    def full(service: Service) -> Service:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "save", full)
    assert teardown.stop(drain_seconds=1).was_running
    assert triton.wait() == proxy.wait() == -signal.SIGTERM
    assert state.load() is None


def test_gpu_memory_that_stays_is_told(
    ew_home: Path, spawn: Spawn, service_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = spawn(SLEEP, **{SERVICE_VARIABLE: f"{service_id}-1"})
    held = {triton.pid: 300 * 2**20, 1: 2**30}
    monkeypatch.setattr(nvidia, "memory_by_process", lambda: held)
    monkeypatch.setattr(teardown, "GPU_SECONDS", 0.2)
    recorded(service_id, None, None, servers=(server(service_id, 1, triton.pid, engine="cuda-vllm"),))
    with pytest.raises(ServiceError) as caught:
        teardown.stop(drain_seconds=1)
    assert f"300 MiB of GPU memory of process {triton.pid}" in caught.value.what
    assert "1024 MiB" not in caught.value.what
    held.clear()
    assert not teardown.stop().was_running
