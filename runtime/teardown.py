"""Take a service down: drain, terminate, kill, then check that no process or shared memory is left."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import ServiceError
from runtime import launch, state
from runtime.processes import ProcessRef, terminate, wait_gone
from runtime.state import Service

TERMINATE_SECONDS = launch.TRITON_EXIT_SECONDS + 5
PROXY_CLOSE_SECONDS = 5  # after its drain, the proxy closes what is left by itself
ORPHAN_SECONDS = 2.0
SCAN_PAUSE_SECONDS = 0.05
MAX_SCANS = 6

Progress = Callable[[str], None]


@dataclass(frozen=True)
class StopReport:
    """What `stop` found and did. `killed` counts processes that ignored SIGTERM."""

    was_running: bool
    models: tuple[str, ...] = ()
    killed: int = 0
    seconds: float = 0.0


def stop(*, drain_seconds: float = 30.0, progress: Progress = lambda text: None) -> StopReport:
    """Drain and end the service; afterwards no process, port or shared memory of it is left.

    Raises:
        ServiceError: something could not be ended.
    """
    with state.exclusive():
        service = state.load()
        if service is None or service.health() == "stale":
            clean_up_remains()
            return StopReport(was_running=False)
        return take_down(service, drain_seconds, progress)


def take_down(service: Service, drain_seconds: float, progress: Progress) -> StopReport:
    """End everything of `service` and drop its record; the caller holds the lock."""
    began = time.monotonic()
    service = state.save(service.with_changes(phase="stopping"))
    killed = 0
    if service.proxy and service.proxy.alive:
        progress("draining the proxy")
        killed += len(terminate([service.proxy], drain_seconds or 2))
    if service.triton and service.triton.alive:
        progress("stopping tritonserver")
        killed += len(terminate([service.triton], TERMINATE_SECONDS))
    if service.stop_command:
        subprocess.run(service.stop_command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed += len(_end_orphans(service))
    _remove_shared_memory(service)
    _verify_stopped(service)
    state.forget()
    return StopReport(True, service.models, killed, round(time.monotonic() - began, 3))


def longest_stop_seconds(drain_seconds: float) -> float:
    """How long taking a service down may last; what waits for it, such as a cluster, must wait longer."""
    return drain_seconds + PROXY_CLOSE_SECONDS + TERMINATE_SECONDS + 2 * ORPHAN_SECONDS


def _end_orphans(service: Service) -> list[ProcessRef]:
    """Workers and stubs end by themselves when tritonserver is gone; after a moment they are made to."""
    killed: list[ProcessRef] = []
    clean_scans = 0
    for _ in range(MAX_SCANS):
        found = service.live_processes()
        killed += terminate(wait_gone(found, ORPHAN_SECONDS), ORPHAN_SECONDS)
        # One clean scan proves nothing: a process in the middle of exec shows no environment.
        clean_scans = 0 if found else clean_scans + 1
        if clean_scans == 2:
            break
        time.sleep(SCAN_PAUSE_SECONDS)
    return killed


def _remove_shared_memory(service: Service) -> None:
    for region in _shared_memory(service):
        region.unlink(missing_ok=True)


def _shared_memory(service: Service) -> list[Path]:
    return list(launch.SHM_FOLDER.glob(f"{launch.shm_prefix(service.service_id)}*"))


def _verify_stopped(service: Service) -> None:
    """No process with the service's mark means that its ports are closed, too: only processes hold them."""
    left = [f"process {process.pid}" for process in service.live_processes()]
    left += [str(region) for region in _shared_memory(service)]
    if left:
        raise ServiceError(
            f"Something of the service is left: {', '.join(left)}.",
            hint="Run ./ew stop again; end the processes by their id if that does not help.",
            code="stop_incomplete",
        )


def clean_up_remains() -> None:
    """After a crash or reboot: end the recorded service's orphans, drop its shared memory and record."""
    service = state.load()
    if service is None:
        return
    if service.health() == "stale":
        _remove_shared_memory(service)
        state.forget()
    else:
        take_down(service, 2, lambda text: None)
