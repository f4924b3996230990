"""Reading a body within limits, answering in JSON, watching for a client that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import orjson

from common.errors import EwError, UsageError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
RETRY_AFTER_SECONDS = 1
CONNECTION = "ew.connection"  # in the extensions of a scope


class ClientConnection(Protocol):
    """What carries a request and its response, below ASGI; the server puts it into the scope."""

    on_writable: (
        Callable[[], None] | None
    )  # called when `writable` may have become true, or the client has left
    writable: bool

    @property
    def has_body(self) -> bool:
        """Whether the whole request body has arrived."""

    def watch(self, gone: Callable[[], None]) -> AbstractContextManager[None]:
        """Within the block, call `gone` as soon as the client leaves; at once, if it has left."""

    def together(self) -> AbstractContextManager[None]:
        """Within the block, hold what is written; it goes out as one at the end."""

    def write_part(self, body: bytes) -> None:
        """Write a part of a body whose length no header has told; the status line must have been sent."""


class ClientGone(Exception):
    """The client closed its connection."""


class BodyTooLarge(UsageError):
    http_status = 413
    default_code = "body_too_large"


class BodyTooSlow(UsageError):
    http_status = 408
    default_code = "body_too_slow"


class Overloaded(EwError):
    """Refused before any work was started; worth trying again."""

    http_status = 503
    default_code = "overloaded"


class TooManyRequests(EwError):
    """`retry_after`, in whole seconds, is when a request of this key will be let in again."""

    http_status = 429
    default_code = "too_many_requests"

    def __init__(self, what: str, *, retry_after: int = RETRY_AFTER_SECONDS, **parts: str) -> None:
        super().__init__(what, **parts)
        self.retry_after = retry_after


def header(scope: Scope, name: bytes) -> str:
    """The first value of a header, given in lower case; "" when absent."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return ""


def client_connection(scope: Scope) -> ClientConnection:
    connection: ClientConnection = scope["extensions"][CONNECTION]
    return connection


async def read_body(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    """The request body.

    Raises:
        BodyTooLarge, BodyTooSlow: over the limit in bytes or in time.
        ClientGone: the client left while sending.
    """
    declared = header(scope, b"content-length")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    if client_connection(scope).has_body:
        return await _read_body(receive, limit)
    try:
        return await asyncio.wait_for(_read_body(receive, limit), seconds)
    except asyncio.TimeoutError:
        raise BodyTooSlow(f"The request body did not arrive within {seconds:g} seconds.") from None


async def _read_body(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {limit} bytes.", hint="Shorten the prompt.")


async def send_json(send: Send, status: int, document: Any, headers: Headers | None = None) -> None:
    await send_bytes(send, status, orjson.dumps(document), [JSON_TYPE, *(headers or [])])


async def send_bytes(send: Send, status: int, body: bytes, headers: Headers) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def error_document(error: EwError, request_id: str) -> dict[str, Any]:
    """One form for every API: ours (code, message, why, hint) and OpenAI's (type, param) together."""
    fields: dict[str, Any] = dict(error.as_dict())
    fields["message"] = str(error)  # with the cause: many clients show nothing else
    fields["type"] = "invalid_request_error" if error.http_status < 500 else "server_error"
    fields["param"] = getattr(error, "field", None)
    return {"error": fields, "requestId": request_id}


def error_headers(error: EwError) -> Headers:
    """What goes with a status: Retry-After, or the methods that a route has."""
    if allow := getattr(error, "allow", ""):
        return [(b"allow", allow.encode())]
    if error.http_status in (429, 503):
        return [(b"retry-after", b"%d" % getattr(error, "retry_after", RETRY_AFTER_SECONDS))]
    return []
