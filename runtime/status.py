"""What is running and how well: processes, models, requests, memory."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import psutil

from common.paths import home
from runtime import logs, probe, state
from runtime.loading import worker_name
from runtime.processes import ProcessRef
from runtime.state import Service

SAMPLE = re.compile(r"(\w+)\{(.*)\}")
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class ModelStatus:
    """One served model; requests as its engine counts them, None where it does not tell."""

    model: str
    state: str
    active: int | None
    queued: int | None
    served: int

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


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
    """The document of `ew status --json`; `state` is stopped, stale, starting, ready, stopping or broken."""
    service = state.load()
    if service is None:
        return {"state": "stopped"}
    health = _health(service)
    if health == "stale":
        return {"state": "stale", "models": [{"model": model} for model in service.models]}
    return {
        "state": health,
        "url": service.url,
        "engine": service.engine,
        "uptime": round(time.time() - service.started_at, 1),
        "ready_after": service.ready_after,
        "models": [model.as_dict() for model in _models(service)],
        "processes": [process.as_dict() for process in _processes(service)],
        "ports": dict(vars(service.ports)),
        "key_file": service.key_file,
        "proxy_ready": _proxy_ready(service),
        "last_errors": _last_errors(health),
    }


def _health(service: Service) -> str:
    """A start or stop that was killed leaves its phase behind: with nobody at work the service is broken."""
    health = service.health()
    return "broken" if health in ("starting", "stopping") and not state.changing() else health


def _models(service: Service) -> list[ModelStatus]:
    loaded = probe.loaded_models(service.ports.triton_http)
    samples = probe.metrics(service.ports.triton_metrics)
    return [_model(model, loaded, samples) for model in service.models]


def _model(model: str, loaded: dict[str, str], samples: dict[str, float]) -> ModelStatus:
    engine = f"{model}-tensorrt_llm"
    states = {loaded.get(name, "NOT LOADED") for name in (model, engine)}
    return ModelStatus(
        model=model,
        state="READY" if states == {"READY"} else sorted(states - {"READY"})[0],
        active=_sample(samples, "nv_trt_llm_request_metrics", model=engine, request_type="active"),
        queued=_sample(samples, "nv_trt_llm_request_metrics", model=engine, request_type="waiting"),
        served=_sample(samples, "nv_inference_request_success", model=engine) or 0,
    )


def _sample(samples: dict[str, float], name: str, **labels: str) -> int | None:
    """The value of the sample of that name whose labels include `labels`."""
    for key, value in samples.items():
        match = SAMPLE.fullmatch(key)
        if match and match[1] == name and labels.items() <= dict(LABEL.findall(match[2])).items():
            return int(value)
    return None


def _processes(service: Service) -> list[ProcessStatus]:
    known = [_main(role, process) for role, process in service.main_processes().items()]
    main_pids = {process.pid for process in known}
    others = [process for process in service.live_processes() if process.pid not in main_pids]
    return known + [_other(process) for process in others]


def _main(role: str, process: ProcessRef) -> ProcessStatus:
    return ProcessStatus(role, process.pid, _memory(process.pid), process.alive)


def _other(process: ProcessRef) -> ProcessStatus:
    return ProcessStatus(_role(process.pid), process.pid, _memory(process.pid))


def _role(pid: int) -> str:
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return "gone"
    if model := worker_name(pid):
        return f"worker {model}"
    if command and command[0].endswith("triton_python_backend_stub"):
        return f"stub {_model_of_stub(command)}"
    return command[0].rsplit("/", 1)[-1] if command else "unknown"


def _model_of_stub(command: list[str]) -> str:
    """The stub's first argument is MODEL_FOLDER/1/model.py; a backend's own is in the backend folder."""
    path = command[1] if len(command) > 1 else ""
    inside = path.removeprefix(str(home().repository)).strip("/")
    return inside.split("/")[0] if inside and not inside.startswith("..") else ""


def _memory(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0


def _proxy_ready(service: Service) -> bool:
    return probe.is_ok(service.ports.proxy, "/health/ready")


def _last_errors(health: str) -> dict[str, str]:
    """Where something is wrong: the last line of each log that names a cause."""
    if health == "ready":
        return {}
    found = {name: logs.troubles(name, limit=1) for name in logs.LOGS}
    return {name: lines[-1] for name, lines in found.items() if lines}
