"""Chunk styles and models that do not stream, as the real tritonserver sends them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.proxy_process import proxy_process
from tests.proxy.packages import write_package
from tests.proxy.stack import parse_events, text_of
from tests.worker.triton import Triton

pytestmark = pytest.mark.e2e
ENGINE = Path(__file__).with_name("styled_engine.py")
STREAMING = ("delta", "cumulative")
PSEUDO = ("whole", "at-once")
PROMPT = "ha ha ha ha, 你好 👋🌍 world"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A proxy over one small Python model a style."""
    folder = tmp_path_factory.mktemp("styles")
    package = write_package(folder / "package")
    triton = Triton(folder / "triton")
    try:
        triton.wait_ready()
        for style in (*STREAMING, *PSEUDO):
            name = f"{style}-tensorrt_llm"
            version = triton.add_model(name, package, backend="python", decoupled=style != "whole")
            (version / "model.py").write_bytes(ENGINE.read_bytes())
            triton.load(name)
        models = dict.fromkeys((*STREAMING, *PSEUDO), package)
        with proxy_process(folder, models, triton) as (url, _):
            yield url
    finally:
        triton.stop()


def stream(url: str, style: str) -> tuple[requests.Response, list[Any]]:
    response = requests.post(f"{url}/api/v1/inference/stream", json=body(style), timeout=60)
    assert response.status_code == 200, response.text
    return response, parse_events(response.content)


def body(style: str) -> dict[str, Any]:
    return {"modelId": style, "prompt": PROMPT, "raw": True}


@pytest.mark.parametrize("style", STREAMING)
def test_both_chunk_styles_stream_the_same_text(url: str, style: str) -> None:
    for _ in range(2):  # the style is unknown at first, and known then
        response, events = stream(url, style)
        assert (text_of(events), events[-1]) == (2 * PROMPT, "[DONE]")
        assert len(events) > len(PROMPT) // 2
        assert "X-Stream-Mode" not in response.headers and "streamMode" not in events[-2]
        assert events[-2]["finishReason"] == "stop"


@pytest.mark.parametrize("style", PSEUDO)
def test_answers_in_one_piece_are_sent_by_character_and_labelled(url: str, style: str) -> None:
    response, events = stream(url, style)
    assert [event["text"] for event in events[:-2]] == list(2 * PROMPT)
    assert response.headers["X-Stream-Mode"] == events[-2]["streamMode"] == "pseudo"
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize("style", (*STREAMING, *PSEUDO))
def test_the_whole_answer_is_the_stream_joined(url: str, style: str) -> None:
    whole = requests.post(f"{url}/api/v1/inference", json=body(style), timeout=60).json()
    _, events = stream(url, style)
    assert whole["text"] == text_of(events)
    assert whole["usage"] == events[-2]["usage"]
