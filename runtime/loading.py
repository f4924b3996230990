"""Unload one model of a running service and load it again; its worker's memory is really given back."""

from __future__ import annotations

import time
from dataclasses import dataclass

from common.errors import ServiceError, UsageError
from runtime import client, nvidia, state
from runtime.processes import ProcessRef, wait_gone
from runtime.roles import memory_of, worker_name
from runtime.state import Service

DRAIN_SECONDS = 30.0
WORKER_END_SECONDS = 5.0  # from its last answer to its end


@dataclass(frozen=True)
class LoadReport:
    """What happened to a model: how many workers ended, and in bytes what they had of host and GPU memory.

    Memory that cannot be read counts as 0, and a worker of another user may not be seen at all.
    """

    model: str
    state: str
    seconds: float
    workers: int = 0
    memory_freed: int = 0
    gpu_memory_freed: int = 0


def unload(model: str, drain_seconds: float = DRAIN_SECONDS) -> LoadReport:
    """Take the model out of the running service. Requests in flight are finished by Triton first.

    Args:
        drain_seconds: how long they may take before this reports an error; they go on all the same.

    Raises:
        UsageError: the service does not serve it.
        ServiceError: nothing runs, the proxy refused, or the worker did not end.
    """
    began = time.monotonic()
    service = _serving(model)
    workers = workers_of(service, model)
    memory = sum(memory_of(worker.pid) for worker in workers)
    gpu_memory = _gpu_memory(service, model, workers)
    found = client.set_loaded(client.of_service(service), model, loaded=False)
    patience = drain_seconds + WORKER_END_SECONDS
    if left := wait_gone(workers, patience):
        raise ServiceError(
            f"The worker of {model} (process {left[0].pid}) is still there after {patience:.0f} s.",
            why="It ends after its last running request.",
            hint="Give them longer with --drain, or look with ./ew logs worker; ./ew stop ends it.",
            code="worker_left",
        )
    seconds = round(time.monotonic() - began, 3)
    return LoadReport(model, found, seconds, len(workers), memory, gpu_memory)


def load(model: str) -> LoadReport:
    """Bring a model that was unloaded back. Errors as in `unload`."""
    began = time.monotonic()
    service = _serving(model)
    found = client.set_loaded(client.of_service(service), model, loaded=True)
    return LoadReport(model, found, round(time.monotonic() - began, 3))


def workers_of(service: Service, model: str) -> list[ProcessRef]:
    """The engine processes of one model."""
    return [process for process in service.live_processes() if worker_name(process.pid) == model]


def _serving(model: str) -> Service:
    service = state.load()
    if service is None or service.health() not in ("ready", "degraded"):
        raise ServiceError("No service is running.", hint="Look with ./ew status.", code="not_running")
    if model not in service.models:
        raise UsageError(
            f"The service does not serve {model!r}.", hint=f"It serves {', '.join(service.models)}."
        )
    return service


def _gpu_memory(service: Service, model: str, workers: list[ProcessRef]) -> int:
    server = service.server_of(model)
    if server is None or server.engine == "cpu":
        return 0
    held = nvidia.memory_by_process()
    return sum(held.get(worker.pid, 0) for worker in workers)
