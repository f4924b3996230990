"""What is running and how well: engines, models, processes, requests, memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from runtime import logs, nvidia, probe, state, versions
from runtime.processes import ProcessRef
from runtime.roles import memory_of, role_of, worker_name
from runtime.state import Server, Service

SOUND = ("ready", "unloaded")  # states in which nothing is wrong with a service that runs
LOG_LINES = 2000  # of each log, in which the last error is looked for
SHORT_TAIL = 400  # lines of each log, in which the cause of a service's trouble is looked for
BATCHER = "nv_trt_llm_inflight_batcher_metrics"
GpuMemory = dict[int, int] | None  # bytes by pid; None where no GPU tells


@dataclass(frozen=True)
class ModelStatus:
    """One served model; requests as its engine counts them, memory in bytes; None where nobody tells.

    `pid` is its worker's; an engine inside tritonserver has none of its own.
    """

    model: str
    engine: str
    env: str | None
    state: str
    pid: int | None
    active: int | None
    queued: int | None
    served: int
    tokens_per_second: float | None
    host_memory: int | None
    gpu_memory: int | None
    last_error: str | None

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class EngineStatus:
    """One tritonserver with all its processes; memory in bytes, `uptime` in seconds."""

    engine: str
    env: str | None
    state: str
    pid: int | None
    uptime: float
    launcher: str
    version: str | None
    tritonserver: str | None
    ports: dict[str, int]
    models: tuple[str, ...]
    host_memory: int
    gpu_memory: int | None

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "models": list(self.models)}


@dataclass(frozen=True)
class ProcessStatus:
    """A process of the service; memory (proportional to what is shared) in bytes."""

    role: str
    pid: int
    memory: int
    alive: bool = True

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def status() -> dict[str, Any]:
    """The document of `ew status --json`.

    `state` is stopped, stale, starting, ready, unloaded (no model is meant to serve), degraded (some of
    what is meant to serve does not), stopping or broken.
    """
    service = state.load()
    if service is None:
        return {"state": "stopped"}
    health = _health(service)
    if health == "stale":
        return {"state": "stale", "models": [{"model": model} for model in service.models]}
    gpu_memory = _gpu_memory(service)
    processes = _processes(service)
    models = [model for server in service.servers for model in _models(server, gpu_memory)]
    proxy_ready = probe.is_ok(service.port, "/health/ready", host=service.address)
    told = judged(health, _settled(service, models), proxy_ready=proxy_ready)
    return {
        "state": told,
        "url": service.url,
        "uptime": _age(service.started_at),
        "ready_after": service.ready_after,
        "engines": [_engine(server, gpu_memory).as_dict() for server in service.servers],
        "models": [model.as_dict() for model in models],
        "processes": [process.as_dict() for process in processes],
        "ports": dict(vars(service.ports)),
        "key_file": service.key_file,
        "proxy_ready": proxy_ready,
        "last_errors": _last_errors(told),
    }


def _settled(service: Service, models: Sequence[ModelStatus]) -> list[str]:
    """States of the models whose tritonserver is not being added or taken away."""
    settled = {model for server in service.servers if server.phase == "ready" for model in server.models}
    return [model.state for model in models if model.model in settled]


def judged(health: str, models: Sequence[str], *, proxy_ready: bool) -> str:
    """The service's state from that of its processes and those of its models.

    A model that was unloaded on purpose is not meant to serve. Where all are unloaded, the proxy is ready all
    the same if it loads them on demand.
    """
    if health != "ready":
        return health
    wanted = [state for state in models if state not in ("UNLOADING", "UNLOADED")]
    if proxy_ready and all(state == "READY" for state in wanted):
        return "ready"
    return "degraded" if wanted else "unloaded"


def _health(service: Service) -> str:
    """A start or stop that was killed leaves its phase behind: with nobody at work the service is broken."""
    health = service.health()
    return "broken" if health in ("starting", "stopping") and not state.changing() else health


def _engine(server: Server, gpu_memory: GpuMemory) -> EngineStatus:
    pids = [process.pid for process in server.live_processes()]
    return EngineStatus(
        engine=server.engine,
        env=server.env,
        state=_server_state(server),
        pid=server.process.pid if server.process else None,
        uptime=_age(server.started_at),
        launcher=server.launcher,
        version=versions.of_engine(server.engine, server.env),
        tritonserver=probe.triton_facts(server.ports.http).get("version"),
        ports=dict(vars(server.ports)),
        models=server.models,
        host_memory=sum(map(memory_of, pids)),
        gpu_memory=_gpu_sum(pids, gpu_memory),
    )


def _server_state(server: Server) -> str:
    if server.phase == "ready":
        return "ready" if server.alive else "ended"
    return server.phase if state.changing() else "broken"


def _models(server: Server, gpu_memory: GpuMemory) -> Iterable[ModelStatus]:
    index = probe.index(server.ports.http)
    samples = probe.metrics(server.ports.metrics)
    workers = {worker_name(process.pid): process.pid for process in server.live_processes()}
    for model in server.models:
        yield _model(model, server, index, samples, workers.get(model), gpu_memory)


def _model(
    model: str,
    server: Server,
    index: dict[str, dict[str, str]],
    samples: dict[str, float],
    worker: int | None,
    gpu_memory: GpuMemory,
) -> ModelStatus:
    engine = f"{model}-tensorrt_llm"
    pids = _with_children(worker) if worker else []
    requests = {
        kind: probe.sample(samples, probe.REQUESTS, model=engine, request_type=kind)
        for kind in ("active", "waiting")
    }
    speed = {"model": engine, "inflight_batcher_specific_metric": "tokens_per_second"}
    return ModelStatus(
        model=model,
        engine=server.engine,
        env=server.env,
        state=_model_state(index, (model, engine)),
        pid=worker,
        active=_whole(requests["active"]),
        queued=_whole(requests["waiting"]),
        served=_whole(probe.sample(samples, "nv_inference_request_success", model=engine)) or 0,
        tokens_per_second=probe.sample(samples, BATCHER, **speed),
        host_memory=sum(map(memory_of, pids)) if worker else None,
        gpu_memory=_gpu_sum(pids, gpu_memory) if worker else None,
        last_error=_last_error(model, index.get(engine, {})),
    )


def _model_state(index: dict[str, dict[str, str]], names: tuple[str, ...]) -> str:
    if not index:
        return "UNREACHABLE"
    states = {_triton_state(index.get(name, {})) for name in names}
    return "READY" if states == {"READY"} else sorted(states - {"READY"})[0]


def _triton_state(entry: dict[str, str]) -> str:
    """Triton's own words, but for a model that was unloaded, which it calls as a failed one."""
    if entry.get("reason") == "unloaded":
        return "UNLOADED"
    return entry.get("state", "UNLOADED")


def _last_error(model: str, entry: dict[str, str]) -> str | None:
    """Why tritonserver has not loaded the model, else the last line of a log about trouble with it."""
    if entry.get("state") == "UNAVAILABLE" and entry.get("reason") != "unloaded":
        return entry.get("reason")
    for name in ("worker", "triton"):
        told = logs.troubles_in(filter(logs.ModelFilter(model), _tail(name, LOG_LINES)), 1)
        if told:
            return told[0]
    return None


def _processes(service: Service) -> list[ProcessStatus]:
    known = [
        ProcessStatus(role, process.pid, memory_of(process.pid), process.alive)
        for role, process in service.main_processes()
    ]
    main_pids = {process.pid for process in known}
    others = [process for process in service.live_processes() if process.pid not in main_pids]
    return known + [_other(process) for process in others]


def _other(process: ProcessRef) -> ProcessStatus:
    return ProcessStatus(role_of(process.pid), process.pid, memory_of(process.pid))


def _with_children(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]


def _gpu_memory(service: Service) -> GpuMemory:
    """Asked of the driver only where an engine uses it: that takes a second."""
    if all(server.engine == "cpu" for server in service.servers):
        return None
    return nvidia.memory_by_process() or None


def _gpu_sum(pids: Iterable[int], gpu_memory: GpuMemory) -> int | None:
    return None if gpu_memory is None else sum(gpu_memory.get(pid, 0) for pid in pids)


def _age(since: float) -> float:
    return round(time.time() - since, 1)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _last_errors(told: str) -> dict[str, str]:
    """Where something is wrong: the last line of each log that names a cause."""
    if told in SOUND:
        return {}
    found = {name: logs.troubles_in(_tail(name, SHORT_TAIL), 1) for name in logs.LOGS}
    return {name: lines[-1] for name, lines in found.items() if lines}


def _tail(name: str, lines: int) -> list[str]:
    """The end of a log; nothing of one that is another user's: the rest can be told all the same."""
    try:
        return logs.tail(name, lines)
    except OSError:
        return []
