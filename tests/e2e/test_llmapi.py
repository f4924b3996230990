"""Upstream's llmapi text model on a real tritonserver, with the cpu worker behind it."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as grpcclient

from builder.lint import lint
from builder.render import render
from common.config import parse_config
from common.paths import Home
from tests.e2e.triton_process import Triton, triton

MODEL = "tensorrt_llm"
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def server(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    home = Home(tmp_path_factory.mktemp("llmapi"))
    entry = {
        "engine": "cpu", "model_path": str(tiny_package), "precision": "exact",
        "max_batch_size": 8, "max_input_len": 64, "max_output_len": 64,
    }  # fmt: skip
    render(parse_config({"models": {"tiny": entry}}), home, layout="llmapi")
    assert lint(home.repository) == []
    with triton(home.repository, home.root) as running:
        yield running


def generate(server: Triton, text: str = PROMPT, **fields: Any) -> dict[str, Any]:
    reply = requests.post(
        f"{server.http}/v2/models/{MODEL}/generate", json={"text_input": text, **fields}, timeout=60
    )
    assert reply.status_code == 200, reply.text
    document: dict[str, Any] = reply.json()
    return document


def stream(server: Triton, text: str = PROMPT, **fields: Any) -> list[dict[str, Any]]:
    body = {"text_input": text, "streaming": True, **fields}
    url = f"{server.http}/v2/models/{MODEL}/generate_stream"
    reply = requests.post(url, json=body, stream=True, timeout=60)
    assert reply.status_code == 200, reply.text
    return [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith(b"data: ")]


def answer(server: Triton, tokens: int = 12, **fields: Any) -> str:
    settings = {"sampling_param_exclude_input_from_output": True, "sampling_param_max_tokens": tokens}
    text: str = generate(server, **{**settings, **fields})["text_output"]
    return text


@pytest.mark.e2e
def test_the_prompt_stands_before_the_answer_unless_excluded(server: Triton) -> None:
    alone = answer(server)
    assert alone
    assert generate(server, sampling_param_max_tokens=12)["text_output"] == PROMPT + alone


@pytest.mark.e2e
def test_streamed_text_is_cumulative(server: Triton) -> None:
    chunks = stream(server, sampling_param_max_tokens=12, return_finish_reason=True)
    texts = [chunk["text_output"] for chunk in chunks]
    assert len(texts) > 3
    assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))
    assert texts[-1].rstrip("\N{REPLACEMENT CHARACTER}") == PROMPT + answer(server).rstrip(
        "\N{REPLACEMENT CHARACTER}"
    )
    reasons = [chunk["finish_reason"] for chunk in chunks]
    assert set(reasons[:-1]) == {"None"}
    assert reasons[-1] == "length"


@pytest.mark.e2e
def test_without_max_tokens_there_are_32(server: Triton) -> None:
    default = answer(server, tokens=32)
    assert generate(server, sampling_param_exclude_input_from_output=True)["text_output"] == default


@pytest.mark.e2e
def test_a_stop_string_ends_the_answer_and_the_engine(server: Triton) -> None:
    whole = answer(server, tokens=40)
    stop = whole[6:9]
    assert stop
    fields: dict[str, Any] = {
        "return_finish_reason": True,
        "return_stop_reason": True,
        "sampling_param_stop": ["not in it", stop],
    }
    found = generate(
        server,
        sampling_param_exclude_input_from_output=True,
        sampling_param_max_tokens=40,
        **fields,
    )
    assert found["text_output"] == whole[: whole.index(stop)]
    assert (found["finish_reason"], found["stop_reason"]) == ("stop", stop)


@pytest.mark.e2e
def test_log_probability_and_times_come_as_declared(server: Triton) -> None:
    found = generate(
        server,
        sampling_param_max_tokens=4,
        return_cumulative_logprob=True,
        sampling_param_return_perf_metrics=True,
    )
    assert -100 < found["cumulative_logprob"] < 0
    assert 0 < found["arrival_time_ns"] <= found["first_token_time_ns"] <= found["last_token_time_ns"]
    assert "finish_reason" not in found


@pytest.mark.e2e
def test_stop_by_request_id_gives_what_there_is(server: Triton) -> None:
    request_id = uuid.uuid4().hex
    got: list[dict[str, Any]] = []
    fields: dict[str, Any] = {"id": request_id, "sampling_param_max_tokens": 64, "return_finish_reason": True}
    running = threading.Thread(target=lambda: got.extend(stream(server, **fields)))
    running.start()
    while running.is_alive():
        body = {"id": request_id, "text_input": "", "stop": True}
        requests.post(f"{server.http}/v2/models/{MODEL}/generate_stream", json=body, timeout=60)
    running.join()
    assert got[-1]["finish_reason"] == "cancelled"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"text_input": ""}, "text_input"),
        ({"sampling_param_best_of": 2}, "best_of"),
        ({"sampling_param_max_tokens": 100_000}, "100000"),
        ({"text_input": "x" * 500}, "at most 64 are allowed"),
    ],
)
def test_what_cannot_be_served_is_said(server: Triton, fields: dict[str, Any], told: str) -> None:
    body = {"text_input": PROMPT, **fields}
    reply = requests.post(f"{server.http}/v2/models/{MODEL}/generate", json=body, timeout=60)
    assert reply.status_code in (400, 501)
    assert told in reply.json()["error"]


@pytest.mark.e2e
def test_tritonclient_gets_the_same_text(server: Triton) -> None:
    inputs = []
    for name, kind, values in (
        ("text_input", "BYTES", np.array([PROMPT.encode()], dtype=object)),
        ("sampling_param_max_tokens", "INT32", np.array([12], dtype=np.int32)),
    ):
        tensor = grpcclient.InferInput(name, [1], kind)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    answers: list[Any] = []
    ended = threading.Event()
    with grpcclient.InferenceServerClient(server.grpc) as client:

        def take(result: Any, error: Any) -> None:
            answers.append(error or result)
            ended.set()

        client.start_stream(take)
        client.async_stream_infer(MODEL, inputs)
        assert ended.wait(60)
    assert answers[0].as_numpy("text_output")[0].decode() == PROMPT + answer(server)
