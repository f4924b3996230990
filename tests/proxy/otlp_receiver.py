"""A small OTLP/HTTP collector: takes traces as protobuf or JSON, keeps their spans."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One span as it was received; ids in hex."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: tuple[str, ...]
    failed: bool


@dataclass
class Receiver:
    """`url` is what OTEL_EXPORTER_OTLP_ENDPOINT takes."""

    url: str
    spans: list[Span] = field(default_factory=list)

    def of(self, service: str) -> list[Span]:
        return [span for span in self.spans if span.service == service]


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A collector on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
    server.receiver = receiver  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        as_json = self.headers.get_content_type() == "application/json"
        request = _from_json(body) if as_json else ExportTraceServiceRequest.FromString(body)
        self.server.receiver.spans += _spans(request)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Nothing: pytest shows what matters."""


def _from_json(body: bytes) -> Any:
    """OTLP's JSON writes ids in hex, where protobuf's own has base64."""
    document = json.loads(body, object_hook=_with_base64_ids)
    return ParseDict(document, ExportTraceServiceRequest(), ignore_unknown_fields=True)


def _with_base64_ids(fields: dict[str, Any]) -> dict[str, Any]:
    ids = {name: fields[name] for name in ("traceId", "spanId", "parentSpanId") if name in fields}
    return {**fields, **{n: base64.b64encode(bytes.fromhex(v)).decode() for n, v in ids.items()}}


def _spans(request: Any) -> list[Span]:
    return [
        Span(
            service=str(_attributes(resource.resource.attributes).get("service.name", "")),
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            attributes=_attributes(span.attributes),
            events=tuple(event.name for event in span.events),
            failed=span.status.code == span.status.STATUS_CODE_ERROR,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None
