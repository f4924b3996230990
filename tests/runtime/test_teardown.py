"""Stopping: orderly, stubborn, half-dead and long-gone services all end with nothing left."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import launch, state, teardown
from runtime.processes import SERVICE_VARIABLE, ProcessRef, boot_id
from runtime.state import Ports, Service
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
        engine="cpu",
        models=("demo",),
        host="127.0.0.1",
        ports=Ports(18180, 18100, 18101, 18102),
        key_file="",
        triton=ProcessRef.of(triton) if triton else None,
        proxy=ProcessRef.of(proxy) if proxy else None,
    )
    return state.save(record.with_changes(**changes))


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
    assert (report.was_running, report.models, report.killed) == (True, ("demo",), 0)
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
