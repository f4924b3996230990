"""Small HTTP questions to the local tritonserver and proxy."""

from __future__ import annotations

import http.client
import json
from typing import Any

TIMEOUT_SECONDS = 5.0


def get(
    port: int, path: str, *, host: str = "127.0.0.1", timeout: float = TIMEOUT_SECONDS
) -> tuple[int, bytes]:
    """Status and body of GET; status 0 when nobody answers."""
    return _exchange("GET", port, path, host, timeout)


def is_ok(port: int, path: str, *, host: str = "127.0.0.1") -> bool:
    return get(port, path, host=host)[0] == 200


def triton_name(port: int) -> str:
    """The name that the tritonserver at `port` was given; empty when none answers."""
    status, body = get(port, "/v2")
    return str(json.loads(body).get("name", "")) if status == 200 else ""


def triton_ready(port: int, models: tuple[str, ...]) -> bool:
    """Whether tritonserver answers and every one of `models` is loaded."""
    # The server's own readiness stays 200 after a model was unloaded, so each model is asked for.
    return is_ok(port, "/v2/health/ready") and all(
        is_ok(port, f"/v2/models/{model}/ready") for model in models
    )


def loaded_models(port: int) -> dict[str, str]:
    """Model -> state (READY, UNAVAILABLE, ...) from tritonserver's index; empty when it does not answer."""
    status, body = _exchange("POST", port, "/v2/repository/index", "127.0.0.1", TIMEOUT_SECONDS)
    if status != 200:
        return {}
    index: list[dict[str, Any]] = json.loads(body)
    return {entry["name"]: entry.get("state", "NOT LOADED") for entry in index}


def metrics(port: int) -> dict[str, float]:
    """tritonserver's metrics as `name{labels}` -> value; empty when it does not answer."""
    status, body = get(port, "/metrics")
    lines = body.decode("utf-8", "replace").splitlines() if status == 200 else []
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def _exchange(method: str, port: int, path: str, host: str, timeout: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
