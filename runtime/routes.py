"""run/routes.json: which tritonserver serves which models, for the proxy, which reads it when it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import atomic
from common.paths import home
from runtime import probe
from runtime.state import Service


def routes_path() -> Path:
    return home().run / "routes.json"


def write(service: Service) -> None:
    """Tell the proxy about every server of `service` that is ready, or is starting with the proxy."""
    atomic.write_json(routes_path(), as_document(service))


def publish(service: Service) -> None:
    """Write the routes and have the running proxy read them now."""
    write(service)
    probe.get(service.port, "/health/ready", host=service.address)


def as_document(service: Service) -> dict[str, Any]:
    return {
        "tritonservers": [
            {"url": server.url, "metrics": server.metrics_url, "models": list(server.models)}
            for server in service.servers
            if server.phase != "stopping"
        ]
    }


def forget() -> None:
    routes_path().unlink(missing_ok=True)
