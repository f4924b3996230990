"""run/service.json: what is running, written atomically, judged against the processes that exist."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common import atomic
from common.config import Engine
from common.errors import ServiceError
from common.paths import home
from runtime.locks import Busy, file_lock
from runtime.ports import TritonPorts
from runtime.processes import ProcessRef, boot_id, processes_of

BUSY = "busy"
LOCK_PATIENCE = 0.5  # `changing` holds the lock for an instant, too

Phase = Literal["starting", "ready", "stopping"]
Health = Literal["stopped", "stale", "starting", "ready", "degraded", "stopping", "broken"]


@dataclass(frozen=True)
class Ports:
    """Where the proxy and the first tritonserver listen."""

    proxy: int
    triton_http: int
    triton_grpc: int
    triton_metrics: int


@dataclass(frozen=True)
class Server:
    """One tritonserver: the models of one engine in one environment. Times are Unix seconds.

    `options` are those it was launched with, for `restart`. `stop_command` ends what outlives the process,
    such as a container.
    """

    server_id: str
    engine: Engine
    models: tuple[str, ...]
    ports: TritonPorts
    started_at: float
    phase: Phase = "starting"
    options: dict[str, Any] = field(default_factory=dict)
    process: ProcessRef | None = None
    launcher: str = "pytriton"
    stop_command: tuple[str, ...] = ()
    ready_after: float | None = None

    @property
    def name(self) -> str:
        """What this tritonserver calls itself: another one at the same port is not taken for it."""
        return f"ew-{self.server_id}"

    @property
    def env(self) -> str | None:
        """The engine's environment by name; None is the base one, or the server's own."""
        return self.options.get("env")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.metrics}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    def live_processes(self) -> list[ProcessRef]:
        """Every process of this server, orphans included."""
        return processes_of(self.server_id)

    def with_changes(self, **changes: Any) -> Server:
        return replace(self, **changes)


@dataclass(frozen=True)
class Service:
    """The proxy and the tritonservers behind it. Times are Unix seconds, durations seconds."""

    service_id: str
    phase: Phase
    boot_id: str
    started_at: float
    host: str
    port: int
    key_file: str
    servers: tuple[Server, ...] = ()
    proxy: ProcessRef | None = None
    ready_after: float | None = None
    timeout: float = 300.0
    drain: float = 25.0
    lame_duck: float = 0.0

    @property
    def url(self) -> str:
        host = "localhost" if self.host in ("0.0.0.0", "127.0.0.1", "::") else self.host
        return f"http://{host}:{self.port}"

    @property
    def address(self) -> str:
        """Where this machine reaches the proxy."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(model for server in self.servers for model in server.models)

    @property
    def ports(self) -> Ports:
        return Ports(self.port, *self.servers[0].ports.as_tuple())

    def server_of(self, model: str) -> Server | None:
        return next((server for server in self.servers if model in server.models), None)

    def main_processes(self) -> list[tuple[str, ProcessRef]]:
        """The tritonservers and the proxy, as far as they were started, each with the name of its log."""
        mains = [*(("triton", server.process) for server in self.servers), ("proxy", self.proxy)]
        return [(name, process) for name, process in mains if process]

    def live_processes(self) -> list[ProcessRef]:
        """Every process of this service, orphans included; none after a reboot."""
        return processes_of(self.service_id) if self.boot_id == boot_id() else []

    def health(self) -> Health:
        """The recorded phase, checked against the main processes; degraded: only some tritonservers live."""
        alive = any(process.alive for _, process in self.main_processes())
        if self.boot_id != boot_id() or not (alive or self.live_processes()):
            return "stale"
        if self.phase != "ready":
            return self.phase
        # One that is being added or taken away does not count.
        serving = [server.alive for server in self.servers if server.phase == "ready"]
        if not any(serving) or self.proxy is None or not self.proxy.alive:
            return "broken"
        return "ready" if all(serving) else "degraded"

    def next_server_id(self) -> str:
        taken = [int(server.server_id.rpartition("-")[2]) for server in self.servers]
        return f"{self.service_id}-{max(taken, default=0) + 1}"

    def with_server(self, changed: Server) -> Service:
        """This service with that server, in the place of the one with its id or behind all others."""
        known = [changed if one.server_id == changed.server_id else one for one in self.servers]
        return self.with_changes(servers=tuple(known if changed in known else [*known, changed]))

    def without_server(self, gone: Server) -> Service:
        left = tuple(server for server in self.servers if server.server_id != gone.server_id)
        return self.with_changes(servers=left)

    def with_changes(self, **changes: Any) -> Service:
        return replace(self, **changes)


def state_path() -> Path:
    return home().run / "service.json"


def save(service: Service) -> Service:
    atomic.write_json(state_path(), asdict(service))
    return service


def load() -> Service | None:
    """The recorded service; None when there is no record.

    Raises:
        ServiceError: the record cannot be read.
    """
    try:
        return _parse(json.loads(state_path().read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ServiceError(
            f"{state_path()} is not readable: {error}.",
            hint=f"Check with 'ps' that no tritonserver runs, then remove {state_path()}.",
            code="state_unreadable",
        ) from None


def forget() -> None:
    state_path().unlink(missing_ok=True)


def changing() -> bool:
    """Whether a start or stop is at work now."""
    try:
        with file_lock(_lock_path(), patience=0):
            return False
    except Busy:
        return True


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Hold the right to start or stop.

    Raises:
        ServiceError: another start or stop is at work.
    """
    try:
        with file_lock(_lock_path(), patience=LOCK_PATIENCE):
            yield
    except Busy:
        raise ServiceError(
            "Another start or stop is at work.",
            hint="Wait for it, then look with ./ew status.",
            code=BUSY,
        ) from None


def _lock_path() -> Path:
    return home().run / "lock"


def _parse(document: dict[str, Any]) -> Service:
    servers = tuple(_parse_server(fields) for fields in document["servers"])
    return Service(**{**document, "servers": servers, "proxy": _process(document.get("proxy"))})


def _parse_server(fields: dict[str, Any]) -> Server:
    parsed = {
        "ports": TritonPorts(**fields["ports"]),
        "models": tuple(fields["models"]),
        "stop_command": tuple(fields["stop_command"]),
        "process": _process(fields.get("process")),
    }
    return Server(**{**fields, **parsed})


def _process(fields: dict[str, Any] | None) -> ProcessRef | None:
    return ProcessRef(**fields) if fields else None
