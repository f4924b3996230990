"""Start a service, told as a story: resolve, prepare, spawn, wait until ready; undo everything on failure."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from common.config import DeployConfig, Engine
from common.errors import Interrupted, ResourceError, ServiceError
from common.paths import home
from runtime import launch, loading, logs, ports, probe, state
from runtime.doctor.diagnosis import diagnose
from runtime.launch import PROXY_DRAIN_SECONDS, Command
from runtime.launchers import LaunchPlan
from runtime.launchers.service import LaunchOptions, ensure_image, plan_service
from runtime.models import resolve_models, save_new_entries
from runtime.processes import ProcessRef, boot_id
from runtime.state import Ports, Service
from runtime.teardown import clean_up_remains, take_down

READY_POLL_SECONDS = 0.05
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PREFERRED_TRITON_PORTS = (8000, 8001, 8002)

Progress = Callable[[str], None]
Children = dict[str, subprocess.Popen[bytes]]
Reserved = list[socket.socket]  # ports of the proxy, tritonserver HTTP, gRPC and metrics


@dataclass(frozen=True)
class StartRequest:
    """What `ew start` was asked for; `timeout` limits getting ready, `drain` running streams; in seconds."""

    models: tuple[str, ...]
    engine: Engine = "cpu"
    host: str = "127.0.0.1"
    port: int = 8080
    timeout: float = 300.0
    launch: LaunchOptions = LaunchOptions()
    drain: float = PROXY_DRAIN_SECONDS


def plan(request: StartRequest) -> tuple[LaunchPlan, list[Command]]:
    """How it would be started, here or on a machine with GPUs; writes nothing."""
    config, model_ids = resolve_models(list(request.models), request.engine)
    with _reserved_ports(request) as reserved:
        service = _new_service(request, model_ids, reserved)
    launch_plan = plan_service(service, config, request.launch, dry_run=True)
    return launch_plan, _commands(service, launch_plan, request.drain)


def start(request: StartRequest, *, progress: Progress = lambda text: None) -> Service:
    """Bring a service up and return it when it is ready; on failure nothing is left running.

    Raises:
        ServiceError: something runs already (`already_running`), or it did not get ready (`start_failed`).
        ConfigError, PackageError, RepositoryError, EnvironmentProblem, ResourceError: found before that.
    """
    with state.exclusive():
        if running := _load_again(request, progress):
            return running
        _refuse_if_running()
        clean_up_remains()
        config, model_ids = resolve_models(list(request.models), request.engine)
        with _reserved_ports(request) as reserved:
            service = _new_service(request, model_ids, reserved)
            launch_plan = plan_service(service, config, request.launch)
            if request.engine != "cpu":
                progress(f"launcher: {launch_plan.launcher} ({launch_plan.reason})")
            for warning in launch_plan.warnings:
                progress(f"warning: {warning}")
            ensure_image(launch_plan, progress)
            save_new_entries(config, model_ids)
            service = service.with_changes(launcher=launch_plan.launcher, stop_command=launch_plan.stop)
            progress("rendering the model repository")
            _prepare(config, service)
            commands = _commands(service, launch_plan, request.drain)
            return _bring_up(service, commands, reserved, request.timeout, progress)


def last_request(service: Service) -> StartRequest:
    """What the recorded service was started with."""
    fields = {**service.request, "models": tuple(service.request["models"])}
    lists = fields["launch"].items()
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in lists
    }
    return StartRequest(**{**fields, "launch": LaunchOptions(**options)})


@contextmanager
def _reserved_ports(request: StartRequest) -> Iterator[Reserved]:
    with ExitStack() as open_sockets:
        reserved = [ports.require(request.port, request.host), *ports.reserve(PREFERRED_TRITON_PORTS)]
        for kept in reserved:
            open_sockets.enter_context(kept)
        yield reserved


def _new_service(request: StartRequest, model_ids: tuple[str, ...], reserved: Reserved) -> Service:
    return Service(
        service_id=uuid.uuid4().hex[:12],
        phase="starting",
        boot_id=boot_id(),
        started_at=time.time(),
        engine=request.engine,
        models=model_ids,
        host=request.host,
        ports=Ports(*map(ports.port_of, reserved)),
        key_file=str(home().run / "api_key"),
        request={**asdict(request), "models": model_ids},
    )


def _commands(service: Service, launch_plan: LaunchPlan, drain: float) -> list[Command]:
    return [launch_plan.command, launch.proxy_command(service, home().config, drain)]


def _load_again(request: StartRequest, progress: Progress) -> Service | None:
    """The running service, when all it lacks of what is asked for are models that were unloaded."""
    service = state.load()
    if service is None or service.health() != "ready":
        return None
    loaded = probe.loaded_models(service.ports.triton_http)
    absent = [model for model in request.models if loaded.get(f"{model}-tensorrt_llm") != "READY"]
    if not absent or not set(request.models) <= set(service.models):
        return None
    for model in absent:
        progress(f"loading {model}")
        loading.load(model)
    return service


def _refuse_if_running() -> None:
    # We hold the lock: a service still "starting" or "stopping" was left by a crash and is cleaned up.
    service = state.load()
    if service is None or service.health() != "ready":
        return
    raise ServiceError(
        f"Already running: {', '.join(service.models)} at {service.url}.",
        why=f"tritonserver has pid {service.triton.pid if service.triton else 'unknown'}.",
        hint="Look with ./ew status, or end it first: ./ew stop",
        code="already_running",
    )


def _prepare(config: DeployConfig, service: Service) -> None:
    # Imported here: `ew stop` and `ew status` need neither templates nor protobuf.
    from builder.render import render
    from proxy.keys import ensure_first_key
    from worker.backend import install_backend

    render(config, home(), only=list(service.models))
    if service.launcher == "pytriton":
        install_backend(launch.backend_folder())
    ensure_first_key(home().keys)
    logs.rotate()


def _bring_up(
    service: Service, commands: list[Command], reserved: Reserved, timeout: float, progress: Progress
) -> Service:
    state.save(service)
    try:
        with _signals_interrupt():
            kept = {"proxy": reserved[:1], "triton": reserved[1:]}
            children = {command.name: _spawn(command, kept[command.name]) for command in commands}
            refs = {name: ProcessRef.of(child.pid) for name, child in children.items()}
            service = state.save(service.with_changes(**refs))
            _wait_until_ready(service, children, timeout, progress)
            elapsed = time.time() - service.started_at
            return state.save(service.with_changes(phase="ready", ready_after=round(elapsed, 3)))
    except KeyboardInterrupt:
        take_down(service, 0, progress)
        raise Interrupted("Interrupted; everything that was started is stopped again.") from None
    except BaseException:  # whatever happened: a service that is not ready must not stay
        take_down(service, 0, progress)
        raise


def _spawn(command: Command, reserved: Reserved) -> subprocess.Popen[bytes]:
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


def _wait_until_ready(service: Service, children: Children, timeout: float, progress: Progress) -> None:
    progress("loading " + ", ".join(service.models))
    deadline = time.monotonic() + timeout
    while not _is_ready(service):
        for name, child in children.items():
            if (code := child.poll()) is not None:
                raise _start_failed(name, f"{name} ended with exit code {code}.")
        if time.monotonic() > deadline:
            raise _start_failed("triton", f"Not ready after {timeout:.0f} s.")
        time.sleep(READY_POLL_SECONDS)


def _is_ready(service: Service) -> bool:
    port = service.ports.triton_http
    engines = tuple(f"{model}-tensorrt_llm" for model in service.models)
    if probe.triton_name(port) != service.triton_name or not probe.triton_ready(
        port, service.models + engines
    ):
        return False
    return probe.is_ok(service.ports.proxy, "/health/ready", host=_probe_host(service))


def _probe_host(service: Service) -> str:
    return "127.0.0.1" if service.host in ("0.0.0.0", "::") else service.host


def _start_failed(name: str, what: str) -> ServiceError:
    """The failure with the lines that name its cause; for tritonserver it may be in the worker's log."""
    sources = ("worker", "triton") if name == "triton" else (name,)
    lines = [line for source in sources for line in (logs.troubles(source) or logs.tail(source, 3))]
    known = diagnose(sources)
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
