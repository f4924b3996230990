"""A client of the documented API: the local service, or any endpoint by its address."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.errors import EngineError, EwError, ServiceError, UsageError
from runtime import state
from runtime.state import Service

PATH = "/api/v1/inference/stream"
WHOLE_PATH = "/api/v1/inference"
MODELS_PATH = "/api/v1/models"
KEY_VARIABLE = "EW_API_KEY"
TIMEOUT_SECONDS = 300.0
DONE = "[DONE]"
REQUEST_IS_WRONG = (400, 404, 405, 413, 415, 422)


@dataclass(frozen=True)
class Endpoint:
    """Where a proxy listens, and the key for it; `key` is never shown."""

    scheme: str
    host: str
    port: int
    key: str
    models: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Endpoint({self.url})"

    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "X-API-Key": self.key}


def find_endpoint(url: str | None = None, key_file: Path | None = None) -> Endpoint:
    """The endpoint at `url`, else the service that runs here. The key is read from a file or the environment.

    Raises:
        ServiceError: nothing runs here, or there is no key.
        UsageError: not an address.
    """
    if url is None:
        service = state.load()
        if service is None or service.health() not in ("ready", "degraded", "broken"):
            raise ServiceError(
                "No service is running here.",
                hint="Start one: ./ew start --model M; or name another with --url.",
                code="not_running",
            )
        return of_service(service, key_file)
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is not an address.", hint="Write it like http://gpu-1:8080.")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return Endpoint(parts.scheme, parts.hostname, port, _given_key(key_file))


def of_service(service: Service, key_file: Path | None = None) -> Endpoint:
    key = _given_key(key_file) if key_file or os.environ.get(KEY_VARIABLE) else api_key(service)
    return Endpoint("http", service.address, service.port, key, service.models)


def stream(where: Service | Endpoint, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """The events of one streamed answer; the last one carries finishReason, usage and timings.

    Closing the iterator closes the connection, which stops the engine's work on it.

    Raises:
        UsageError: the proxy refuses the request as it is.
        ServiceError: the proxy is out of reach, or turned the request away.
        EngineError: the stream ended without `[DONE]`, or with an error event.
    """
    endpoint = where if isinstance(where, Endpoint) else of_service(where)
    with _request(endpoint, "POST", PATH, body) as response:
        yield from _events(response)


def complete(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    """One whole answer: text, finishReason, usage, timings. Errors as in `stream`."""
    with _request(endpoint, "POST", WHOLE_PATH, body) as response:
        return _checked(json.loads(response.read()))


def model_ids(endpoint: Endpoint) -> list[str]:
    """The ids that the endpoint serves, as it lists them."""
    with _request(endpoint, "GET", MODELS_PATH) as response:
        document = json.loads(response.read())
    return [row["id"] for row in document["models"]]


def set_loaded(endpoint: Endpoint, model_id: str, *, loaded: bool) -> str:
    """Load or unload a model through the proxy, which needs an admin key; returns the model's state."""
    action = "load" if loaded else "unload"
    with _request(endpoint, "POST", f"{MODELS_PATH}/{model_id}/{action}", {}) as response:
        return str(json.loads(response.read())["state"])


def choose_model(endpoint: Endpoint, wanted: str | None) -> str:
    """The model asked for, else the only one.

    Raises:
        UsageError: there are several, or none.
    """
    if wanted:
        return wanted
    known = list(endpoint.models) or model_ids(endpoint)
    if len(known) == 1:
        return known[0]
    raise UsageError(
        "Several models are served." if known else "No model is served.",
        hint=f"Name one with --model: {', '.join(known)}." if known else "Start with one: ./ew start --help",
        code="model_not_named",
    )


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
            hint=f"Give the key you stored in the variable {KEY_VARIABLE}; or remove keys.json beside it and "
            "start again, for a new one.",
            code="key_missing",
        ) from None


def _given_key(key_file: Path | None) -> str:
    if key_file is None:
        return _as_key(os.environ.get(KEY_VARIABLE, ""), f"the variable {KEY_VARIABLE}")
    try:
        return _as_key(key_file.read_text(encoding="utf-8"), f"the file {key_file}")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The key file {key_file} cannot be read.", why=f"{error}.") from None


def _as_key(text: str, where: str) -> str:
    """The key; what no HTTP header can carry is none, and is not shown in case it is another secret."""
    key = text.strip()
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"What {where} holds is no API key.",
            why="A key is one line of ASCII characters.",
            hint="./ew keys add NAME makes one.",
            code="key_malformed",
        )
    return key


@contextmanager
def _request(
    endpoint: Endpoint, method: str, path: str, body: dict[str, Any] | None = None
) -> Iterator[http.client.HTTPResponse]:
    """The response, when it is 200.

    Raises:
        UsageError: refused for what the request is.
        ServiceError: out of reach, turned away, or broken while it was read.
    """
    kind = http.client.HTTPSConnection if endpoint.scheme == "https" else http.client.HTTPConnection
    data = None if body is None else _encoded(body)
    with closing(kind(endpoint.host, endpoint.port, timeout=TIMEOUT_SECONDS)) as connection:
        try:
            connection.request(method, path, data, endpoint.headers())
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(response)
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(
                f"The connection to {endpoint.url} broke: {error}.",
                hint="Look with ./ew status and ./ew logs proxy.",
                code="unreachable",
            ) from error


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # bytes of an argument or a pipe that Python could not read as text
        raise UsageError(
            "The prompt is not text in this terminal's encoding.",
            why="It holds bytes of another one, such as GBK in a UTF-8 locale.",
            hint="Convert it first: iconv -f GB18030 -t UTF-8 FILE | ./ew infer",
            code="prompt_encoding",
        ) from None


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


def _refused(response: http.client.HTTPResponse) -> EwError:
    """What is wrong with the request itself is a UsageError with the proxy's own code; the rest may pass."""
    text = response.read().decode("utf-8", "replace")
    try:
        error = json.loads(text)
        error = error.get("error", error)
        what, hint, code = error["message"], error.get("hint", ""), error.get("code", "")
    except (ValueError, KeyError, AttributeError):
        what, hint, code = text[:200], "", ""
    if response.status == 401:
        hint = f"Give the service's key with --key-file FILE or the variable {KEY_VARIABLE}."
    if response.status in REQUEST_IS_WRONG:
        return UsageError(f"The proxy refused the request: {what}", hint=hint, code=code)
    return ServiceError(f"The proxy answered {response.status}: {what}", hint=hint, code="request_refused")
