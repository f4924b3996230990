"""The ensemble over the real engine: rendered repository, bridge and worker, greedy text."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from common.detokenize import REPLACEMENT
from tests.e2e.conftest import RunningService

CHINESE = (
    "请把这一行重复很多次：\n你好，世界！👩‍👩‍👧‍👦 🇨🇳 今天天气很好。\n你好，世界！👩‍👩‍👧‍👦 🇨🇳 今天天气很好。\n"
)


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"text_input": text, "max_tokens": 48, "id": uuid.uuid4().hex, **fields}


def generate(service: RunningService, text: str, **fields: Any) -> str:
    url = f"{service.triton_url}/v2/models/{service.model}/generate"
    reply = requests.post(url, json=body(text, **fields), timeout=120)
    assert reply.status_code == 200, reply.text
    answer: str = reply.json()["text_output"]
    return answer


def stream(service: RunningService, text: str, **fields: Any) -> str:
    url = f"{service.triton_url}/v2/models/{service.model}/generate_stream"
    reply = requests.post(url, json=body(text, stream=True, **fields), stream=True, timeout=120)
    lines = (line for line in reply.iter_lines() if line.startswith(b"data: "))
    return "".join(json.loads(line[6:])["text_output"] for line in lines)


@pytest.mark.e2e
def test_the_capital_of_france(service: RunningService) -> None:
    question = "What is the capital of France?"
    assert "Paris" in generate(service, question, parameters={"apply_chat_template": True})


@pytest.mark.e2e
@pytest.mark.parametrize("text", ["The capital of France is", CHINESE])
def test_streams_equal_the_whole_answer(service: RunningService, text: str) -> None:
    whole = generate(service, text)
    with ThreadPoolExecutor(4) as pool:
        streamed = list(pool.map(lambda _: stream(service, text), range(4)))
    assert streamed == [whole] * 4
    assert whole.strip()
    assert REPLACEMENT not in whole


@pytest.mark.e2e
def test_stop_words_end_the_answer(service: RunningService) -> None:
    counted = generate(service, "1, 2, 3, 4, 5, 6, 7,", stop_words=["10"])
    assert counted.rstrip().endswith("10")


@pytest.mark.e2e
def test_the_engines_own_refusal_reaches_the_client(service: RunningService) -> None:
    url = f"{service.triton_url}/v2/models/{service.model}/generate"
    reply = requests.post(url, json=body("a", max_tokens=100_000), timeout=60)
    assert reply.status_code == 400
    assert "request_output_len is 100000" in reply.json()["error"]
