"""The ASGI application: routes, keys, request ids, timing headers, errors, the access log."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
from collections.abc import Awaitable, Iterator
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router

from common.errors import EwError
from proxy import metrics
from proxy.control import control_routes
from proxy.http import (
    ClientGone,
    Message,
    Receive,
    Scope,
    Send,
    error_document,
    error_headers,
    header,
    send_json,
)
from proxy.keys import ApiKey
from proxy.logs import configure_logging
from proxy.native import InferenceRoute
from proxy.openai_api.routes import openai_routes
from proxy.service import Context, Service
from proxy.settings import Settings

access_log = logging.getLogger("proxy.access")
log = logging.getLogger("proxy")

SETTINGS_VARIABLE = "EW_PROXY_SETTINGS"
OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/metrics", "/openapi.json"})
ADMIN_PATH = re.compile(r"/api/v1/models/[^/]+/(load|unload)")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
CLIENT_GONE_STATUS = 499
EXPOSED_HEADERS = ("X-Request-Id", "X-Response-Time", "Server-Timing", "X-Stream-Mode")


class Unauthorized(EwError):
    http_status = 401
    default_code = "unauthorized"


class Forbidden(EwError):
    http_status = 403
    default_code = "forbidden"


class RouteError(EwError):
    """No such path, or not with this method."""

    def __init__(self, what: str, status: int, allow: str = "", **parts: str) -> None:
        super().__init__(what, **parts)
        self.http_status = status  # type: ignore[misc]
        self.allow = allow


class Gateway:
    """The application of one worker process."""

    def __init__(self, service: Service, *, handle_signals: bool = False) -> None:
        self.service = service
        self._handle_signals = handle_signals
        self._router = Router(routes(service), redirect_slashes=False)
        self._entry = self._http
        if service.settings.cors_origins:
            self._entry = CORSMiddleware(
                self._http,
                allow_origins=service.settings.cors_origins,
                allow_methods=("GET", "POST"),
                allow_headers=("*",),
                expose_headers=EXPOSED_HEADERS,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self._entry is not self._http and header(scope, b"access-control-request-method"):
                # The middleware answers a preflight by itself; that answer has the usual headers, too.
                send = _Responder(Context(_request_id(scope), perf_counter()), send)
            await self._entry(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = Context(_request_id(scope), perf_counter())
        scope["ew"], scope["app"] = context, self  # with an app, Starlette raises 404 and 405
        responder = _Responder(context, send)
        tracing = self.service.tracing
        if tracing is not None:
            context.span = tracing.start_request(scope)
        try:
            context.key = self._authorize(scope)
            await self._router(scope, receive, responder)
        except ClientGone:
            context.status = CLIENT_GONE_STATUS
        except EwError as error:
            await _answer_error(error, context, responder)
        except HTTPException as error:
            await _answer_error(_route_error(scope, error), context, responder)
        except Exception:  # the process boundary: one request's bug must not show its inside to a client
            log.exception("request %s failed", context.request_id)
            await _answer_error(EwError("The proxy failed.", code="internal"), context, responder)
        finally:
            _log_access(scope, context)
            if tracing is not None:
                tracing.end_request(context.span, _route_path(scope), context)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.service.start()
        # What is there now stays: the collector need not walk it while tokens wait.
        gc.collect()
        gc.freeze()
        if self._handle_signals:
            self._drain_on_signal()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.service.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def _drain_on_signal(self) -> None:
        """Begin to drain before the server's own handler closes the port."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            served = signal.getsignal(number)

            def handler(received: int, frame: Any, served: Any = served) -> None:
                loop.call_soon_threadsafe(self.service.begin_drain)
                if callable(served):
                    served(received, frame)

            signal.signal(number, handler)

    def _authorize(self, scope: Scope) -> ApiKey | None:
        path = scope["path"]
        if self.service.keys is None or path in OPEN_PATHS:
            return None
        presented = header(scope, b"x-api-key") or _bearer(header(scope, b"authorization"))
        key = self.service.keys.verify(presented) if presented else None
        if key is None:
            raise Unauthorized(
                "The API key is wrong." if presented else "There is no API key in this request.",
                hint="Send the header X-API-Key; ./ew start says where the first key is kept.",
            )
        if not key.allows("admin" if ADMIN_PATH.fullmatch(path) else "inference"):
            raise Forbidden(f"The key {key.name!r} may not do this.", hint="Use a key with the role admin.")
        return key


class _Responder:
    """`send` with the headers that every response has."""

    def __init__(self, context: Context, send: Send) -> None:
        self._context = context
        self._send = send

    def __call__(self, message: Message) -> Awaitable[None]:
        """Not a coroutine of its own: body messages, one a token, pass straight through."""
        if message["type"] == "http.response.start":
            self._add_headers(message)
        return self._send(message)

    def _add_headers(self, message: Message) -> None:
        context = self._context
        context.status = message["status"]
        elapsed = (perf_counter() - context.arrived) * 1000
        timing = ", ".join([*_phases(context), f"total;dur={elapsed:.3f}"])
        message["headers"] = [
            *message["headers"],
            (b"x-request-id", context.request_id.encode()),
            (b"x-response-time", b"%.3fms" % elapsed),
            (b"server-timing", timing.encode()),
        ]


def _phases(context: Context) -> Iterator[str]:
    """For Server-Timing, in milliseconds: until the request was handed on, until its first token."""
    timings = context.timings
    if timings is not None and timings.sent:
        yield f"queue;dur={(timings.sent - timings.arrived) * 1000:.3f}"
    if timings is not None and timings.first:
        yield f"ttft;dur={(timings.first - timings.arrived) * 1000:.3f}"


def routes(service: Service) -> list[Route]:
    return [
        Route("/api/v1/inference/stream", InferenceRoute(service, streams=True), methods=["POST"]),
        Route("/api/v1/inference", InferenceRoute(service, streams=False), methods=["POST"]),
        *openai_routes(service),
        *control_routes(service),
    ]


def create_app() -> Gateway:
    """The factory that uvicorn's workers call; settings come in the environment."""
    settings = Settings.from_json(os.environ[SETTINGS_VARIABLE])
    configure_logging(settings.log_level)
    return Gateway(Service(settings), handle_signals=True)


async def _answer_error(error: EwError, context: Context, send: _Responder) -> None:
    context.facts["error"] = error.code
    if context.status:  # the response has begun; closing it unfinished is all that is left
        return
    document = error_document(error, context.request_id)
    await send_json(send, error.http_status, document, error_headers(error))


def _route_error(scope: Scope, error: HTTPException) -> EwError:
    what = f"There is no {scope['method']} {scope['path']}."
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    allow = (error.headers or {}).get("Allow", "")
    return RouteError(what, error.status_code, allow, hint="/openapi.json lists every route.", code=code)


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    return given if REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _route_path(scope: Scope) -> str:
    """The path as the route has it, with names in place of ids."""
    route: Any = scope.get("route")
    return route.path if route is not None else "(none)"


def _log_access(scope: Scope, context: Context) -> None:
    metrics.REQUESTS.labels(_route_path(scope), str(context.status)).inc()
    if scope["path"] in OPEN_PATHS:
        return
    access_log.info(
        "request",
        extra={
            "fields": {
                "requestId": context.request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": context.status,
                "ms": round((perf_counter() - context.arrived) * 1000, 3),
                "key": context.key.name if context.key else None,
                "modelId": context.model_id or None,
                **context.facts,
            }
        },
    )
