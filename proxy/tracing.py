"""OpenTelemetry: spans of a request and its generations, sent over OTLP where the standard variables say so.

Without OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) nothing is imported and nothing
recorded; a client's own trace context still goes on to tritonserver. Prompts and answers are never in a span.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from common.errors import EnvironmentProblem
from proxy.http import Scope

if TYPE_CHECKING:
    from proxy.generation import Generation, GenerationRequest
    from proxy.service import Context

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
CONTEXT_HEADERS = ("traceparent", "tracestate")
SAFE_VALUE = re.compile(r"[\x20-\x7e]{1,512}")
SERVICE_NAME = "ew-proxy"
FLUSH_SECONDS = 5.0


def client_context(scope: Scope) -> dict[str, str]:
    """The W3C trace context that the client sent."""
    names = {name.encode(): name for name in CONTEXT_HEADERS}
    found = {names[name]: value.decode("latin-1") for name, value in scope["headers"] if name in names}
    return {name: value for name, value in found.items() if SAFE_VALUE.fullmatch(value)}


def as_headers(context: Mapping[str, str]) -> bytes:
    """A trace context as lines of an HTTP request."""
    return "".join(f"{name}: {value}\r\n" for name, value in context.items()).encode()


def configured_tracing(environment: Mapping[str, str] | None = None) -> Tracing | None:
    """The exporter that the environment asks for; None when it asks for none.

    Raises:
        EnvironmentProblem: OpenTelemetry is asked for, but not installed.
    """
    variables = os.environ if environment is None else environment
    if not any(variables.get(name) for name in ENDPOINT_VARIABLES):
        return None
    if variables.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        return Tracing()
    except ImportError as error:
        raise EnvironmentProblem(
            "Traces are asked for, but OpenTelemetry is not installed.",
            why=f"OTEL_EXPORTER_OTLP_ENDPOINT is set; {error}.",
            hint="Run ./ew setup --engine cpu again, which installs it, or unset the variable.",
            code="opentelemetry_missing",
        ) from None


class Tracing:
    """Makes and sends the spans. Sampler, limits, headers and compression follow the OTEL_* variables."""

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ.get("OTEL_SERVICE_NAME") or SERVICE_NAME
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": name}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("ew.proxy")
        self._propagator = TraceContextTextMapPropagator()
        self._api = trace

    def start_request(self, scope: Scope) -> Any:
        """The span of one HTTP request, in the client's trace where there is one."""
        return self._tracer.start_span(
            scope["method"],
            context=self._propagator.extract(client_context(scope)),
            kind=self._api.SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": scope["path"]},
        )

    def end_request(self, span: Any, route: str, context: Context) -> None:
        span.update_name(f"{span.name} {route}")
        span.set_attributes(
            {
                "http.route": route,
                "http.response.status_code": context.status,
                "ew.request_id": context.request_id,
                **({"error.type": context.facts["error"]} if "error" in context.facts else {}),
            }
        )
        if context.status >= 500:
            span.set_status(self._api.StatusCode.ERROR)
        span.end()

    def start_generation(self, parent: Any, request: GenerationRequest) -> Any:
        """The span of one generation; tritonserver's own spans are its children."""
        return self._tracer.start_span(
            f"generate {request.model.model_id}",
            context=self._api.set_span_in_context(parent),
            kind=self._api.SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": "text_completion",
                "gen_ai.request.model": request.model.model_id,
                "gen_ai.request.max_tokens": request.max_tokens,
                "ew.engine_request_id": request.engine_id,
            },
        )

    def end_generation(self, span: Any, generation: Generation) -> None:
        timings = generation.timings
        for name, at in (
            ("sent", timings.sent),
            ("first token", timings.first),
            ("last token", timings.last),
        ):
            if at:
                span.add_event(name, timestamp=_wall_clock_ns(at))
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": len(generation.request.prompt_ids),
                "gen_ai.usage.output_tokens": generation.completion_tokens,
                "gen_ai.response.finish_reasons": (generation.finish_reason,),
            }
        )
        if generation.finish_reason == "error":
            span.set_status(self._api.StatusCode.ERROR)
        span.end()

    def context_headers(self, span: Any) -> bytes:
        """What makes tritonserver's spans children of `span`."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._api.set_span_in_context(span))
        return as_headers(carrier)

    async def close(self) -> None:
        """Send what waits; a collector that is away may cost a few seconds and no more."""
        flushing = asyncio.get_running_loop().run_in_executor(None, self._flush)
        await asyncio.wait((flushing,), timeout=2 * FLUSH_SECONDS)

    def _flush(self) -> None:
        self._provider.force_flush(int(FLUSH_SECONDS * 1000))
        self._provider.shutdown()


def _wall_clock_ns(at: float) -> int:
    """A stamp of perf_counter as Unix time."""
    return time.time_ns() - int((perf_counter() - at) * 1e9)
