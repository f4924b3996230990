"""The exact commands and environments of the two processes of a service."""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import EnvironmentProblem
from common.paths import SOURCE_ROOT, home
from runtime import pythons
from runtime.processes import SERVICE_VARIABLE
from runtime.state import Service

TRITON_EXIT_SECONDS = 10
PROXY_DRAIN_SECONDS = 25.0  # less than `stop` waits, so that the proxy can close what is left by itself
METRICS_INTERVAL_MS = 500
SHM_FOLDER = Path("/dev/shm")


@dataclass(frozen=True)
class Command:
    """A process to start: `environment` is what is added to ours, `log` takes stdout and stderr."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.arguments)])

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "command": list(self.arguments),
            "environment": dict(self.environment),
            "log": str(self.log),
        }


def backend_folder() -> Path:
    return home().cache / "backends"


def shm_prefix(service_id: str) -> str:
    """What the names of the service's shared memory regions begin with."""
    return f"ew-{service_id}-"


def proxy_command(service: Service, config: Path) -> Command:
    """The proxy, at the service's host and port. It reads its keys from a file: they are never in argv.

    The routes file, once it is there, takes the place of the servers and models in the arguments.
    """
    return Command(
        "proxy",
        (
            sys.executable,
            "-m",
            "proxy",
            f"--config={config}",
            *(f"--triton={server.url}" for server in service.servers),
            *(f"--triton-metrics={server.metrics_url}" for server in service.servers),
            f"--routes={home().run / 'routes.json'}",
            f"--host={service.host}",
            f"--port={service.port}",
            f"--keys={home().keys}",
            f"--drain={service.drain:g}",
            f"--lame-duck={service.lame_duck:g}",
            *(f"--model={model}" for model in service.models),
        ),
        home().logs / "proxy.log",
        {
            "PYTHONPATH": prefixed("PYTHONPATH", SOURCE_ROOT),
            "EW_HOME": str(home().root),
            SERVICE_VARIABLE: service.service_id,
        },
    )


def libpython_folder() -> Path:
    """The folder of this Python's shared library, which Triton's stub links against."""
    version = (sys.version_info[0], sys.version_info[1])
    folders = [sysconfig.get_config_var("LIBDIR") or "", str(Path(sys.base_prefix) / "lib")]
    folder = pythons.find_library(version, folders)
    if not folder:
        raise EnvironmentProblem(
            f"{pythons.library_name(version)}, which Triton's Python backend links to, is not here.",
            hint=f"Install {pythons.library_package(version)}, then run the same command again.",
            code="libpython_missing",
        )
    return Path(folder)


def prefixed(name: str, *first: Path) -> str:
    """A path variable of ours with folders put before what it holds."""
    old = [os.environ[name]] if os.environ.get(name) else []
    return os.pathsep.join([*map(str, first), *old])
