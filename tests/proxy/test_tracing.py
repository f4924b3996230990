"""Spans of the proxy's own, received by a collector; and what is passed on without one."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from common.errors import EnvironmentProblem
from proxy.tracing import as_headers, client_context, configured_tracing
from tests.proxy.otlp_receiver import Receiver, Span, receiving
from tests.proxy.stack import MODEL

SECRET = "my-secret-question"
CLIENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOT_SAMPLED = CLIENT[:-1] + "0"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        yield made


def named(receiver: Receiver, name: str) -> Span:
    [found] = [span for span in receiver.of("ew-proxy") if span.name == name]
    return found


async def test_a_request_and_its_generation_are_spans_of_the_clients_trace(
    receiver: Receiver, make_stack: Callable[..., Any]
) -> None:
    async with make_stack() as stack:
        ids = stack.script("an answer")
        body = {"modelId": MODEL, "prompt": SECRET, "requestId": "r-1"}
        await stack.post("/api/v1/inference/stream", body, traceparent=CLIENT, tracestate="a=b")
        sent = next(headers for headers in stack.triton.headers if "traceparent" in headers)
    request = named(receiver, "POST /api/v1/inference/stream")
    generation = named(receiver, f"generate {MODEL}")
    assert request.trace_id == generation.trace_id == CLIENT.split("-")[1]
    assert (request.parent_id, generation.parent_id) == (CLIENT.split("-")[2], request.span_id)
    assert sent["traceparent"] == f"00-{generation.trace_id}-{generation.span_id}-01"
    assert sent["tracestate"] == "a=b"
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["ew.request_id"] == "r-1"
    assert generation.attributes["gen_ai.usage.output_tokens"] == len(ids)
    assert generation.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert generation.events == ("sent", "first token", "last token")
    assert SECRET not in str(receiver.spans) and "an answer" not in str(receiver.spans)


async def test_errors_are_marked(receiver: Receiver, make_stack: Callable[..., Any]) -> None:
    async with make_stack() as stack:
        stack.script("x", fail_after=0)
        await stack.post("/api/v1/inference", {"modelId": MODEL, "prompt": "hi"})
        await stack.get("/nowhere")
    assert named(receiver, f"generate {MODEL}").failed
    failed = named(receiver, "POST /api/v1/inference")
    assert failed.failed and failed.attributes["error.type"] == "engine"
    unknown = named(receiver, "GET (none)")
    assert not unknown.failed and unknown.attributes["http.response.status_code"] == 404


async def test_a_trace_that_the_client_does_not_record_is_not_recorded(
    receiver: Receiver, make_stack: Callable[..., Any]
) -> None:
    async with make_stack() as stack:
        stack.script("x")
        await stack.post("/api/v1/inference", {"modelId": MODEL, "prompt": "hi"}, traceparent=NOT_SAMPLED)
        sent = next(headers for headers in stack.triton.headers if "traceparent" in headers)
    assert not receiver.spans
    assert sent["traceparent"].startswith(NOT_SAMPLED[:36]) and sent["traceparent"].endswith("-00")


async def test_a_collector_that_is_away_costs_no_answer(
    make_stack: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with make_stack() as stack:
        stack.script("x")
        status, _, _ = await stack.post("/api/v1/inference", {"modelId": MODEL, "prompt": "hi"})
        assert status == 200


def test_nothing_is_traced_unless_asked_for() -> None:
    assert configured_tracing({}) is None
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}
    assert configured_tracing(asked) is None


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_opentelemetry(name: str, *arguments: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(f"No module named {name!r}")
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_opentelemetry)
    with pytest.raises(EnvironmentProblem, match="not installed") as caught:
        configured_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    assert "ew setup" in caught.value.hint


def test_a_clients_context_cannot_smuggle_headers() -> None:
    headers = [(b"traceparent", CLIENT.encode()), (b"tracestate", b"a=b\r\nX-Evil: 1"), (b"x-other", b"1")]
    assert as_headers(client_context({"headers": headers})) == f"traceparent: {CLIENT}\r\n".encode()
