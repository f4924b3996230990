"""run/service.json: what is running, written atomically, judged against the processes that exist."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common import atomic
from common.errors import ServiceError
from common.paths import home
from runtime.locks import Busy, file_lock
from runtime.processes import ProcessRef, boot_id, processes_of_service

LOCK_PATIENCE = 0.5  # `changing` holds the lock for an instant, too

Phase = Literal["starting", "ready", "stopping"]
Health = Literal["stopped", "stale", "starting", "ready", "stopping", "broken"]


@dataclass(frozen=True)
class Ports:
    """Where things listen. tritonserver's three are on loopback only."""

    proxy: int
    triton_http: int
    triton_grpc: int
    triton_metrics: int


@dataclass(frozen=True)
class Service:
    """One service: a tritonserver and the proxy in front of it. Times are Unix seconds."""

    service_id: str
    phase: Phase
    boot_id: str
    started_at: float
    engine: str
    models: tuple[str, ...]
    host: str
    ports: Ports
    key_file: str
    triton: ProcessRef | None = None
    proxy: ProcessRef | None = None
    ready_after: float | None = None
    launcher: str = "pytriton"
    stop_command: tuple[str, ...] = ()  # ends what outlives its process, such as a container
    request: dict[str, Any] = field(default_factory=dict)  # what `start` was asked for, for `restart`

    @property
    def url(self) -> str:
        host = "localhost" if self.host in ("0.0.0.0", "127.0.0.1", "::") else self.host
        return f"http://{host}:{self.ports.proxy}"

    @property
    def triton_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.triton_http}"

    @property
    def triton_name(self) -> str:
        """What our tritonserver calls itself: another one at the same port is not taken for it."""
        return f"ew-{self.service_id}"

    def main_processes(self) -> dict[str, ProcessRef]:
        """tritonserver and the proxy, as far as they were started."""
        mains = {"triton": self.triton, "proxy": self.proxy}
        return {name: process for name, process in mains.items() if process}

    def live_processes(self) -> list[ProcessRef]:
        """Every process of this service, orphans included; none after a reboot."""
        return processes_of_service(self.service_id) if self.boot_id == boot_id() else []

    def health(self) -> Health:
        """The recorded phase, checked against the two main processes."""
        mains = [process for process in self.main_processes().values() if process.alive]
        if self.boot_id != boot_id() or not (mains or self.live_processes()):
            return "stale"
        if self.phase == "ready" and len(mains) < 2:
            return "broken"
        return self.phase

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
            code="busy",
        ) from None


def _lock_path() -> Path:
    return home().run / "lock"


def _parse(document: dict[str, Any]) -> Service:
    fields = dict(document)
    fields["ports"] = Ports(**fields["ports"])
    fields["models"] = tuple(fields["models"])
    fields["stop_command"] = tuple(fields.get("stop_command", ()))
    for name in ("triton", "proxy"):
        fields[name] = ProcessRef(**fields[name]) if fields.get(name) else None
    return Service(**fields)
