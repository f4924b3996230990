"""A minimal client of the documented endpoint, for the demo."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from common.errors import EngineError, ServiceError
from runtime.state import Service

PATH = "/api/v1/inference/stream"
TIMEOUT_SECONDS = 300.0
DONE = "[DONE]"


def stream(service: Service, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of one streamed answer; the last one carries finishReason, usage and timings.

    Raises:
        ServiceError: the proxy is out of reach, or refused the request.
        EngineError: the stream ended without `[DONE]`, or with an error event.
    """
    connection = http.client.HTTPConnection(_address(service), service.ports.proxy, timeout=TIMEOUT_SECONDS)
    with closing(connection):
        try:
            connection.request("POST", PATH, json.dumps(body).encode(), _headers(service))
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(response)
            yield from _events(response)
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(
                f"The stream from {service.url} broke: {error}.",
                hint="Look with ./ew status and ./ew logs proxy.",
            ) from error


def api_key(service: Service) -> str:
    """The key made at first start.

    Raises:
        ServiceError: its file was removed; the proxy keeps only a digest.
    """
    try:
        return Path(service.key_file).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise ServiceError(
            f"The API key is no longer in {service.key_file}.",
            hint="Use the key you stored; or remove keys.json beside it and start again, for a new one.",
            code="key_missing",
        ) from None


def _address(service: Service) -> str:
    return "127.0.0.1" if service.host in ("0.0.0.0", "::") else service.host


def _headers(service: Service) -> dict[str, str]:
    return {"Content-Type": "application/json", "X-API-Key": api_key(service)}


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.decode("utf-8").removeprefix("data:").strip()
        if data == DONE:
            return
        if data and line.startswith(b"data:"):
            yield _checked(json.loads(data))
    raise EngineError("The stream ended before its end was announced.", hint="Look with ./ew logs worker.")


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    if "error" in event:
        error = event["error"]
        raise EngineError(
            error.get("message", "The engine failed."), hint=error.get("hint", ""), code=error.get("code", "")
        )
    return event


def _refused(response: http.client.HTTPResponse) -> ServiceError:
    text = response.read().decode("utf-8", "replace")
    try:
        error = json.loads(text)
        error = error.get("error", error)
        what, hint = error["message"], error.get("hint", "")
    except (ValueError, KeyError, AttributeError):
        what, hint = text[:200], ""
    return ServiceError(f"The proxy answered {response.status}: {what}", hint=hint, code="request_refused")
