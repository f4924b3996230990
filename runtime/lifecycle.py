"""Start a service or add to it, told as a story: resolve, plan, prepare, bring up."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from common.config import DeployConfig, Engine
from common.errors import RepositoryError, ServiceError, UsageError
from common.paths import home
from runtime import launch, loading, logs, ports, probe, state
from runtime.bringup import Draft, bring_up
from runtime.groups import Group, groups_of
from runtime.launch import PROXY_DRAIN_SECONDS
from runtime.launchers.service import LaunchOptions, ensure_image, plan_service
from runtime.models import resolve_models, save_new_entries
from runtime.ports import TritonPorts
from runtime.processes import boot_id
from runtime.state import Server, Service
from runtime.teardown import Progress, choose, clean_up_remains, take_down, take_down_server
from worker.backend import install_backend

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
MODEL_KINDS = ("", "-preprocessing", "-tensorrt_llm", "-postprocessing", "-tensorrt_llm_bls")

Reserved = dict[str, list[socket.socket]]  # what keeps ports, by a group's number or "proxy"


@dataclass(frozen=True)
class StartRequest:
    """What `ew start` was asked for; `timeout` limits getting ready, `drain` running streams; in seconds.

    For `lame_duck` seconds at most, open connections may bring one more request each when the service stops.
    Without `engine` each model has the one of its entry; host and port are those of the running service, else
    the defaults. `envs` are environments by name, at most one for each engine.
    """

    models: tuple[str, ...]
    engine: Engine | None = None
    host: str | None = None
    port: int | None = None
    timeout: float = 300.0
    launch: LaunchOptions = LaunchOptions()
    drain: float = PROXY_DRAIN_SECONDS
    lame_duck: float = 0.0
    envs: tuple[str, ...] = ()


def plan(request: StartRequest) -> Draft:
    """How it would be started, here or on a machine with GPUs; writes nothing."""
    config, models = resolve_models(list(request.models), request.engine)
    recorded = state.load()
    standing = recorded if recorded and recorded.health() in ("ready", "degraded") else None
    groups = _missing_groups(config, models, request, standing)
    with _reserved_ports(request, groups, standing) as reserved:
        return _draft(config, groups, request, standing, reserved, dry_run=True)


def start(request: StartRequest, *, progress: Progress = lambda text: None) -> Service:
    """Bring models up and return the service when they are ready; on failure nothing of them is left running.

    A service that runs already gets another tritonserver behind its proxy, and what was unloaded is loaded.

    Raises:
        ServiceError: all of it runs already (`already_running`), or it did not get ready (`start_failed`).
        ConfigError, PackageError, RepositoryError, EnvironmentProblem, ResourceError: found before that.
    """
    with state.exclusive():
        config, models = resolve_models(list(request.models), request.engine)
        standing = _what_stands(progress)
        if standing:
            _refuse_other_address(standing, request)
        groups = _missing_groups(config, models, request, standing)
        unloaded = _unloaded(standing, models)
        if standing and standing.proxy and standing.proxy.alive and not groups:
            if not unloaded:
                raise _already_running(standing)
            service = standing
        else:
            service = _start_groups(config, groups, request, standing, progress)
        for model in unloaded:
            progress(f"loading {model}")
            loading.load(model)
        return service


def restart(
    *,
    drain_seconds: float = 30.0,
    progress: Progress = lambda text: None,
    engine: Engine | None = None,
    env: str | None = None,
) -> Service:
    """Stop the service, or its servers of an engine or environment, and start the same with the same options.

    Packages and configuration are read again, before anything is stopped.

    Raises:
        ServiceError: nothing is recorded, or as in `start`.
    """
    with state.exclusive():
        service = state.load()
        if service is None:
            raise ServiceError(
                "Nothing is running.", hint="Start with: ./ew start --model ID", code="not_running"
            )
        chosen = choose(service, engine, env)
        groups = [Group(server.engine, server.models, launch_options(server)) for server in chosen]
        config, _ = resolve_models([model for group in groups for model in group.models], None)
        standing = _without(service, chosen, drain_seconds, progress)
        return _start_groups(config, groups, as_request(service), standing, progress)


def as_request(service: Service) -> StartRequest:
    """What brings the recorded service up again at its address."""
    return StartRequest(
        service.models,
        None,
        service.host,
        service.port,
        service.timeout,
        drain=service.drain,
        lame_duck=service.lame_duck,
    )


def launch_options(server: Server) -> LaunchOptions:
    """What the recorded server was launched with."""
    options = server.options.items()
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options
    }
    return LaunchOptions(**fields)


def _what_stands(progress: Progress) -> Service | None:
    """The service with its live servers; what is left of dead ones is cleaned up."""
    service = state.load()
    # We hold the lock: what is still "starting" or "stopping" was left by a crash.
    if service is None or service.health() in ("stale", "starting", "stopping"):
        clean_up_remains()
        return None
    dead = [server for server in service.servers if not (server.alive and server.phase == "ready")]
    if len(dead) == len(service.servers):
        clean_up_remains()
        return None
    for server in dead:
        progress(f"cleaning up after the tritonserver of {', '.join(server.models)}, which had ended")
        service, _ = take_down_server(service, server, 0, lambda text: None)
    return service


def _without(
    service: Service, chosen: Sequence[Server], drain_seconds: float, progress: Progress
) -> Service | None:
    """The service after these servers were taken down; None when nothing of it is left."""
    if service.health() == "stale":
        clean_up_remains()
        return None
    if len(chosen) == len(service.servers):
        take_down(service, drain_seconds, progress)
        return None
    for server in chosen:
        service, _ = take_down_server(service, server, drain_seconds, progress)
    return service


def _missing_groups(
    config: DeployConfig, models: Sequence[str], request: StartRequest, standing: Service | None
) -> list[Group]:
    served = standing.models if standing else ()
    missing = [model for model in models if model not in served]
    return groups_of(config, missing, request.launch, request.envs if missing else ())


def _unloaded(standing: Service | None, models: Sequence[str]) -> list[str]:
    """Those of `models` that a running server has, but not loaded."""
    found = []
    for model in models:
        server = standing.server_of(model) if standing else None
        if server and probe.loaded_models(server.ports.http).get(f"{model}-tensorrt_llm") != "READY":
            found.append(model)
    return found


def _refuse_other_address(service: Service, request: StartRequest) -> None:
    if request.port in (None, service.port) and request.host in (None, service.host):
        return
    raise UsageError(
        f"The service that runs listens on {service.host}:{service.port}; models are added to it there.",
        hint="Leave --host and --port out; or end it first: ./ew stop",
        code="other_address",
    )


def _already_running(service: Service) -> ServiceError:
    pids = ", ".join(str(server.process.pid) for server in service.servers if server.process)
    return ServiceError(
        f"Already running: {', '.join(service.models)} at {service.url}.",
        why=f"tritonserver has pid {pids}.",
        hint="Look with ./ew status, or end it first: ./ew stop",
        code="already_running",
    )


def _start_groups(
    config: DeployConfig,
    groups: Sequence[Group],
    request: StartRequest,
    standing: Service | None,
    progress: Progress,
) -> Service:
    """Everything from free ports to ready; the caller holds the lock."""
    with _reserved_ports(request, groups, standing) as reserved:
        draft = _draft(config, groups, request, standing, reserved)
        for server in draft.new_servers:
            _announce(draft, server, progress)
        save_new_entries(config, [model for group in groups for model in group.models])
        progress("rendering the model repository")
        _prepare(config, draft)
        return bring_up(draft, reserved, request.timeout, progress)


def _announce(draft: Draft, server: Server, progress: Progress) -> None:
    """Say how a server is launched where there was a choice; pull its image before the clock runs."""
    launch_plan = draft.plans[server.server_id]
    if server.engine != "cpu":
        progress(f"launcher of {server.engine}: {launch_plan.launcher} ({launch_plan.reason})")
    for warning in launch_plan.warnings:
        progress(f"warning: {warning}")
    ensure_image(launch_plan, progress)


@contextmanager
def _reserved_ports(
    request: StartRequest, groups: Sequence[Group], standing: Service | None
) -> Iterator[Reserved]:
    """Ports for the proxy, unless it runs, and for each group under its number."""
    with ExitStack() as open_sockets:
        reserved: Reserved = {}
        if standing is None or not (standing.proxy and standing.proxy.alive):
            address = standing or request
            reserved["proxy"] = [ports.require(address.port or DEFAULT_PORT, address.host or DEFAULT_HOST)]
        for number, _ in enumerate(groups):
            reserved[str(number)] = ports.reserve(TritonPorts().as_tuple())
        for kept in (socket for sockets in reserved.values() for socket in sockets):
            open_sockets.enter_context(kept)
        yield reserved


def _draft(
    config: DeployConfig,
    groups: Sequence[Group],
    request: StartRequest,
    standing: Service | None,
    reserved: Reserved,
    *,
    dry_run: bool = False,
) -> Draft:
    service = standing or _new_service(request)
    plans = {}
    for number, group in enumerate(groups):
        server = _new_server(service, group, TritonPorts(*map(ports.port_of, reserved[str(number)])))
        launch_plan = plan_service(server, config, group.options, dry_run=dry_run)
        plans[server.server_id] = launch_plan
        server = server.with_changes(launcher=launch_plan.launcher, stop_command=launch_plan.stop)
        service = service.with_server(server)
    return Draft(service, plans, standing, starts_proxy="proxy" in reserved)


def _new_service(request: StartRequest) -> Service:
    return Service(
        service_id=uuid.uuid4().hex[:12],
        phase="starting",
        boot_id=boot_id(),
        started_at=time.time(),
        host=request.host or DEFAULT_HOST,
        port=request.port or DEFAULT_PORT,
        key_file=str(home().run / "api_key"),
        timeout=request.timeout,
        drain=request.drain,
        lame_duck=request.lame_duck,
    )


def _new_server(service: Service, group: Group, listening: TritonPorts) -> Server:
    return Server(
        server_id=service.next_server_id(),
        engine=group.engine,
        models=group.models,
        ports=listening,
        started_at=time.time(),
        options=asdict(group.options),
    )


def _refuse_lint_errors(models: Sequence[str]) -> None:
    """Raise RepositoryError where lint finds an error in a folder of these models."""
    from builder.lint import lint

    folders = {f"{model}{kind}" for model in models for kind in MODEL_KINDS}
    for finding in lint(home().repository):
        if finding.rule.severity == "error" and finding.file.split("/")[0] in folders:
            raise RepositoryError(
                f"{finding.file}:{finding.line}: {finding.message}",
                why=finding.rule.why,
                hint=f"{finding.rule.cure} See ./ew lint.",
                code="repository_lint",
            )


def _prepare(config: DeployConfig, draft: Draft) -> None:
    # Imported here: `ew stop` and `ew status` need neither templates nor protobuf.
    from builder.render import render
    from proxy.keys import ensure_first_key

    models = [model for server in draft.new_servers for model in server.models]
    if models:
        render(config, home(), only=models)
        _refuse_lint_errors(models)
    if any(server.launcher == "pytriton" for server in draft.new_servers):
        install_backend(launch.backend_folder())
    ensure_first_key(home().keys)
    if draft.standing is None:
        logs.rotate()
