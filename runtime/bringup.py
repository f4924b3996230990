"""Spawn what a start adds, wait until it is ready, and undo it when that fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from common.errors import Interrupted, ResourceError, ServiceError
from common.paths import home
from runtime import launch, logs, probe, routes, state
from runtime.doctor.diagnosis import diagnose
from runtime.launch import Command
from runtime.launchers import LaunchPlan
from runtime.processes import ProcessRef, terminate
from runtime.state import Server, Service
from runtime.teardown import Progress, take_down, take_down_server

READY_POLL_SECONDS = 0.05
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PROXY_END_SECONDS = 2.0

Sockets = Mapping[str, list[socket.socket]]


@dataclass(frozen=True)
class Draft:
    """What a start adds: `service` is `standing`, what runs already, with the new servers.

    `plans` has their launches by server id.
    """

    service: Service
    plans: Mapping[str, LaunchPlan]
    standing: Service | None
    starts_proxy: bool

    @property
    def new_servers(self) -> list[Server]:
        return [server for server in self.service.servers if server.server_id in self.plans]

    def commands(self) -> list[Command]:
        """What is spawned, tritonservers first."""
        proxy = [launch.proxy_command(self.service, home().config)] if self.starts_proxy else []
        return [*(plan.command for plan in self.plans.values()), *proxy]


@dataclass(frozen=True)
class Child:
    """A spawned process, the name of its log, and the server it is; None for the proxy."""

    log: str
    process: subprocess.Popen[bytes]
    server: Server | None = None


def bring_up(draft: Draft, reserved: Sockets, timeout: float, progress: Progress) -> Service:
    """Spawn, wait, record; returns the service when all that is new in it is ready.

    Raises:
        ServiceError: it did not get ready within `timeout` seconds; what was spawned is ended.
    """
    marks = logs.marks()
    began = time.monotonic()
    service = state.save(draft.service)
    try:
        with _signals_interrupt():
            if draft.starts_proxy:
                routes.write(service)
            children = _spawn_all(draft, reserved)
            service = state.save(_with_processes(service, children))
            _wait_until_ready(draft, service, children, Patience(timeout, marks), progress)
            return state.save(_ready(service, draft, round(time.monotonic() - began, 3)))
    except KeyboardInterrupt:
        _undo(draft, service, progress)
        raise Interrupted("Interrupted; everything that was started is stopped again.") from None
    except BaseException:  # whatever happened: what is not ready must not stay
        _undo(draft, service, progress)
        raise


@dataclass(frozen=True)
class Patience:
    """How long to wait in seconds, and where the logs ended before."""

    seconds: float
    marks: Mapping[str, int]


def _spawn_all(draft: Draft, reserved: Sockets) -> list[Child]:
    children = []
    for number, server in enumerate(draft.new_servers):
        command = draft.plans[server.server_id].command
        children.append(Child("triton", _spawn(command, reserved[str(number)]), server))
    if draft.starts_proxy:
        command = launch.proxy_command(draft.service, home().config)
        children.append(Child("proxy", _spawn(command, reserved["proxy"])))
    return children


def _spawn(command: Command, reserved: list[socket.socket]) -> subprocess.Popen[bytes]:
    """Start in a session of its own, so that a closed terminal does not end it; it inherits `reserved`."""
    try:
        with command.log.open("ab") as log:
            return subprocess.Popen(
                command.arguments,
                env={**os.environ, **command.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=home().root,
                start_new_session=True,
                pass_fds=[kept.fileno() for kept in reserved],
            )
    except OSError as error:
        raise ResourceError(f"{command.name} cannot be started.", why=f"{error}.") from error


def _with_processes(service: Service, children: list[Child]) -> Service:
    for child in children:
        process = ProcessRef.of(child.process.pid)
        if child.server is None:
            service = service.with_changes(proxy=process)
        else:
            service = service.with_server(child.server.with_changes(process=process))
    return service


def _ready(service: Service, draft: Draft, seconds: float) -> Service:
    for server in service.servers:
        if server.server_id in draft.plans:
            service = service.with_server(server.with_changes(phase="ready", ready_after=seconds))
    return service.with_changes(phase="ready", ready_after=service.ready_after or seconds)


def _wait_until_ready(
    draft: Draft, service: Service, children: list[Child], patience: Patience, progress: Progress
) -> None:
    new = draft.new_servers
    if new:
        progress("loading " + ", ".join(model for server in new for model in server.models))
    deadline = time.monotonic() + patience.seconds
    announced = draft.starts_proxy
    while True:
        if all(_triton_ready(server) for server in new):
            if not announced:  # a running proxy hears of a server when it can answer
                routes.write(service)
                announced = True
            if _proxy_ready(service, new):
                return
        for child in children:
            if (code := child.process.poll()) is not None:
                raise _start_failed(child.log, f"{child.log} ended with exit code {code}.", patience)
        if time.monotonic() > deadline:
            raise _start_failed("triton", f"Not ready after {patience.seconds:.0f} s (--timeout).", patience)
        time.sleep(READY_POLL_SECONDS)


def _triton_ready(server: Server) -> bool:
    engines = tuple(f"{model}-tensorrt_llm" for model in server.models)
    port = server.ports.http
    return probe.triton_name(port) == server.name and probe.triton_ready(port, server.models + engines)


def _proxy_ready(service: Service, new: list[Server]) -> bool:
    """Whether the proxy knows every model of the service, and those of the new servers as ready."""
    states = probe.proxy_models(service.port, service.address)
    wanted = (model for server in new for model in server.models)
    return set(service.models) <= set(states) and all(states[model] == "READY" for model in wanted)


def _undo(draft: Draft, service: Service, progress: Progress) -> None:
    """End what was started; a service that ran before is left as it was."""
    if draft.standing is None:
        take_down(service, 0, progress)
        return
    for server in service.servers:
        if server.server_id in draft.plans:
            service, _ = take_down_server(service, server, 0, progress)
    if draft.starts_proxy and service.proxy:
        terminate([service.proxy], PROXY_END_SECONDS)
    state.save(draft.standing)
    routes.write(draft.standing)


def _start_failed(name: str, what: str, patience: Patience) -> ServiceError:
    """The failure with the lines that name its cause; for tritonserver it may be in the worker's log."""
    sources = ("worker", "triton") if name == "triton" else (name,)
    written = {source: logs.since(source, patience.marks) for source in sources}
    lines = [line for text in written.values() for line in (logs.troubles_in(text) or text[-3:])]
    known = diagnose(written)
    parts = [f"{known.cause} [{known.id}]"] if known else []
    parts += ["the logs say", *(f"    {line}" for line in lines)] if lines else []
    mend = f"{known.fix} " if known else ""
    return ServiceError(
        f"The service did not start: {what}",
        why="\n".join(parts),
        hint=f"{mend}Read it all with ./ew logs {name}; everything was stopped again.",
        code="start_failed",
    )


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """While starting, SIGTERM and SIGHUP undo what was started, as Ctrl-C does."""

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
