"""One trace through the whole service: the client's, the proxy's spans in it, tritonserver's below them."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from tests.e2e.conftest import Installation
from tests.proxy.otlp_receiver import Span, receiving

pytestmark = pytest.mark.e2e
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_trace_reaches_the_engine_model(tiny: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        document = tiny.start()
        answer = requests.post(
            f"http://127.0.0.1:{tiny.port}/api/v1/inference",
            json={"modelId": "tiny", "prompt": "hi", "maxTokens": 5},
            headers={
                "X-API-Key": Path(document["key_file"]).read_text().strip(),
                "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01",
            },
            timeout=60,
        )
        assert answer.status_code == 200
        tiny.stop()
        spans = {span.span_id: span for span in receiver.spans if span.trace_id == TRACE_ID}
    assert "tiny-tensorrt_llm" in {span.name for span in spans.values()}, receiver.spans
    [engine] = [span for span in spans.values() if span.name == "tiny-tensorrt_llm"]
    assert engine.service == "ew-tritonserver"
    assert lineage(engine, spans)[-2:] == ["generate tiny", "POST /api/v1/inference"]


def lineage(span: Span, spans: dict[str, Span]) -> list[str]:
    """Names of the spans above one, nearest first."""
    names = []
    while span.parent_id in spans:
        span = spans[span.parent_id]
        names.append(span.name)
    return names
