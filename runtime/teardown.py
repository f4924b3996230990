"""Take a service or one of its servers down: drain, terminate, kill, then check that nothing is left."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.config import Engine
from common.errors import ServiceError, UsageError
from runtime import launch, nvidia, ports, probe, routes, state
from runtime.processes import ProcessRef, processes_of, terminate, wait_gone
from runtime.state import Server, Service

TERMINATE_SECONDS = launch.TRITON_EXIT_SECONDS + 5
PROXY_CLOSE_SECONDS = 5  # after its drain, the proxy closes what is left by itself
ORPHAN_SECONDS = 2.0
GPU_SECONDS = 5.0
SCAN_PAUSE_SECONDS = 0.05
DRAIN_PAUSE_SECONDS = 0.1
MAX_SCANS = 6

Progress = Callable[[str], None]


@dataclass(frozen=True)
class StopReport:
    """What `stop` found and did. `killed` counts processes that ignored SIGTERM."""

    was_running: bool
    models: tuple[str, ...] = ()
    killed: int = 0
    seconds: float = 0.0


def stop(
    *,
    drain_seconds: float = 30.0,
    progress: Progress = lambda text: None,
    engine: Engine | None = None,
    env: str | None = None,
) -> StopReport:
    """Drain and end the service, or only its servers of an engine or environment; the last one takes all.

    Raises:
        UsageError: no server has that engine and environment.
        ServiceError: something could not be ended.
    """
    with state.exclusive():
        service = state.load()
        if service is None or service.health() == "stale":
            clean_up_remains()
            return StopReport(was_running=False)
        chosen = choose(service, engine, env)
        if len(chosen) == len(service.servers):
            return take_down(service, drain_seconds, progress)
        return _take_down_some(service, chosen, drain_seconds, progress)


def choose(service: Service, engine: Engine | None, env: str | None) -> list[Server]:
    """The servers of an engine and an environment; all where nothing is said.

    Raises:
        UsageError: there is none.
    """
    found = [
        server
        for server in service.servers
        if engine in (None, server.engine) and (env is None or server.env == env)
    ]
    if not found and (engine or env):
        asked = " in ".join(filter(None, [engine, env]))
        running = ", ".join(describe(server) for server in service.servers) or "nothing"
        raise UsageError(f"No tritonserver runs {asked}.", hint=f"Running: {running}.", code="not_running")
    return found


def describe(server: Server) -> str:
    """An engine and where it runs, in words."""
    return f"{server.engine} in {server.env}" if server.env else server.engine


def take_down(service: Service, drain_seconds: float, progress: Progress) -> StopReport:
    """End everything of `service` and drop its record; the caller holds the lock."""
    began = time.monotonic()
    service = service.with_changes(phase="stopping")
    _note(service)
    killed = 0
    if service.proxy and service.proxy.alive:
        progress("draining the proxy")
        killed += len(terminate([service.proxy], drain_seconds or 2))
    killed += _end(service.servers, service.service_id, progress)
    _verify_ports([(service.port, service.address)])
    routes.forget()
    state.forget()
    return StopReport(True, service.models, killed, round(time.monotonic() - began, 3))


def take_down_server(
    service: Service, server: Server, drain_seconds: float, progress: Progress
) -> tuple[Service, int]:
    """End one server of a service that goes on: no new requests, drain, terminate. The caller holds the lock.

    Returns the service without it, and how many processes had to be killed.
    """
    service = service.with_server(server.with_changes(phase="stopping"))
    _note(service)
    with suppress(OSError):
        routes.publish(service)
    if server.alive and drain_seconds:
        progress(f"draining {', '.join(server.models)}")
        _wait_until_idle(server, drain_seconds)
    killed = _end([server], server.server_id, progress)
    return state.save(service.without_server(server)), killed


def longest_stop_seconds(drain_seconds: float) -> float:
    """How long taking a service down may last; what waits for it, such as a cluster, must wait longer."""
    return drain_seconds + PROXY_CLOSE_SECONDS + TERMINATE_SECONDS + 2 * ORPHAN_SECONDS


def clean_up_remains() -> None:
    """After a crash or reboot: end the recorded service's orphans, drop its shared memory and record."""
    service = state.load()
    if service is None:
        return
    if service.health() == "stale":
        _remove_shared_memory(service.service_id)
        routes.forget()
        state.forget()
    else:
        take_down(service, 2, lambda text: None)


def _note(service: Service) -> None:
    """Record that it is being stopped, as far as the disk has room: a full one must not keep it alive."""
    with suppress(OSError):
        state.save(service)


def _take_down_some(
    service: Service, chosen: list[Server], drain_seconds: float, progress: Progress
) -> StopReport:
    began, killed = time.monotonic(), 0
    for server in chosen:
        service, more = take_down_server(service, server, drain_seconds, progress)
        killed += more
    models = tuple(model for server in chosen for model in server.models)
    return StopReport(True, models, killed, round(time.monotonic() - began, 3))


def _wait_until_idle(server: Server, seconds: float) -> None:
    """Until no request of the server's models runs or waits, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and probe.running_requests(server.ports.metrics):
        time.sleep(DRAIN_PAUSE_SECONDS)


def _end(servers: Sequence[Server], mark: str, progress: Progress) -> int:
    """Terminate tritonservers and whatever else carries `mark`; returns how many had to be killed.

    Raises:
        ServiceError: a process, shared memory, GPU memory or a port is left.
    """
    mains = [server.process for server in servers if server.process and server.process.alive]
    pids = {process.pid for process in processes_of(mark)}
    if mains:
        progress("stopping tritonserver")
    killed = len(terminate(mains, TERMINATE_SECONDS))
    for server in servers:
        if server.stop_command:
            subprocess.run(server.stop_command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed += len(_end_orphans(mark))
    _remove_shared_memory(mark)
    gpu_memory = [] if all(server.engine == "cpu" for server in servers) else _gpu_memory_left(pids)
    _verify(gpu_memory + _processes_left(mark))
    _verify_ports([(port, ports.LOOPBACK) for server in servers for port in server.ports.as_tuple()])
    return killed


def _end_orphans(mark: str) -> list[ProcessRef]:
    """Workers and stubs end by themselves when tritonserver is gone; after a moment they are made to."""
    killed: list[ProcessRef] = []
    clean_scans = 0
    for _ in range(MAX_SCANS):
        found = processes_of(mark)
        killed += terminate(wait_gone(found, ORPHAN_SECONDS), ORPHAN_SECONDS)
        # One clean scan proves nothing: a process in the middle of exec shows no environment.
        clean_scans = 0 if found else clean_scans + 1
        if clean_scans == 2:
            break
        time.sleep(SCAN_PAUSE_SECONDS)
    return killed


def _remove_shared_memory(mark: str) -> None:
    for region in _shared_memory(mark):
        region.unlink(missing_ok=True)


def _shared_memory(mark: str) -> list[Path]:
    return list(launch.SHM_FOLDER.glob(f"{launch.shm_prefix(mark)}*"))


def _processes_left(mark: str) -> list[str]:
    left = [f"process {process.pid}" for process in processes_of(mark)]
    return left + [str(region) for region in _shared_memory(mark)]


def _gpu_memory_left(pids: set[int]) -> list[str]:
    """What these processes, which have ended, still hold; the driver takes a moment to free it."""
    deadline = time.monotonic() + GPU_SECONDS
    while (held := _held_by(pids)) and time.monotonic() < deadline:
        time.sleep(DRAIN_PAUSE_SECONDS)
    return [f"{memory // nvidia.MIB} MiB of GPU memory of process {pid}" for pid, memory in held.items()]


def _held_by(pids: set[int]) -> dict[int, int]:
    return {pid: memory for pid, memory in nvidia.memory_by_process().items() if pid in pids}


def _verify_ports(addresses: Iterable[tuple[int, str]]) -> None:
    _verify([f"port {port}" for port, address in addresses if not ports.is_free(port, address)])


def _verify(left: list[str]) -> None:
    if left:
        raise ServiceError(
            f"Something of the service is left: {', '.join(left)}.",
            hint="Run ./ew stop again; end the processes by their id if that does not help.",
            code="stop_incomplete",
        )
