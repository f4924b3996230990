"""Small HTTP questions to the local tritonserver and proxy."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any

TIMEOUT_SECONDS = 5.0
REQUESTS = "nv_trt_llm_request_metrics"
SAMPLE = re.compile(r"(\w+)\{(.*)\}")
RUNNING = re.compile(REQUESTS + r'\{.*request_type="(active|waiting)"')
LABEL = re.compile(r'(\w+)="([^"]*)"')


def get(
    port: int, path: str, *, host: str = "127.0.0.1", timeout: float = TIMEOUT_SECONDS
) -> tuple[int, bytes]:
    """Status and body of GET; status 0 when nobody answers."""
    return _exchange("GET", port, path, host, timeout)


def is_ok(port: int, path: str, *, host: str = "127.0.0.1") -> bool:
    return get(port, path, host=host)[0] == 200


def triton_facts(port: int) -> dict[str, Any]:
    """What the tritonserver at `port` says of itself: name, version, extensions; empty when none answers."""
    status, body = get(port, "/v2")
    facts: dict[str, Any] = json.loads(body) if status == 200 else {}
    return facts


def triton_name(port: int) -> str:
    """The name that the tritonserver at `port` was given; empty when none answers."""
    return str(triton_facts(port).get("name", ""))


def proxy_models(port: int, host: str) -> dict[str, str]:
    """Model -> state as the proxy sees it now; empty when it does not answer."""
    _, body = get(port, "/health/ready", host=host)
    try:
        models: dict[str, str] = json.loads(body)["models"]
        return models
    except (ValueError, KeyError, TypeError):
        return {}


def triton_ready(port: int, models: tuple[str, ...]) -> bool:
    """Whether tritonserver answers and every one of `models` is loaded."""
    # The server's own readiness stays 200 after a model was unloaded, so each model is asked for.
    return is_ok(port, "/v2/health/ready") and all(
        is_ok(port, f"/v2/models/{model}/ready") for model in models
    )


def index(port: int) -> dict[str, dict[str, str]]:
    """Model -> its entry in tritonserver's index (state, reason); empty when it does not answer."""
    status, body = _exchange("POST", port, "/v2/repository/index", "127.0.0.1", TIMEOUT_SECONDS)
    entries: list[dict[str, str]] = json.loads(body) if status == 200 else []
    return {entry["name"]: entry for entry in entries}


def loaded_models(port: int) -> dict[str, str]:
    """Model -> state (READY, UNAVAILABLE, ...) from tritonserver's index; empty when it does not answer."""
    return {name: entry.get("state", "NOT LOADED") for name, entry in index(port).items()}


def metrics(port: int) -> dict[str, float]:
    """tritonserver's metrics as `name{labels}` -> value; empty when it does not answer."""
    status, body = get(port, "/metrics")
    lines = body.decode("utf-8", "replace").splitlines() if status == 200 else []
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def sample(samples: dict[str, float], name: str, **labels: str) -> float | None:
    """The value of the metric of that name whose labels include `labels`; None where there is none."""
    for key, value in samples.items():
        match = SAMPLE.fullmatch(key)
        if match and match[1] == name and labels.items() <= dict(LABEL.findall(match[2])).items():
            return value
    return None


def running_requests(metrics_port: int) -> int:
    """Requests that the engines of a tritonserver have taken and not ended."""
    counts = (value for key, value in metrics(metrics_port).items() if RUNNING.match(key))
    return round(sum(counts))


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
