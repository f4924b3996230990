"""The rendered ensemble on a real tritonserver: text in, text out, over HTTP and tritonclient's gRPC.

The engine is an echo, so that the expected text is known: what comes out is what went in, token by token.
"""

from __future__ import annotations

import json
import queue
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as grpcclient

from builder.render import render
from common.config import parse_config
from common.detokenize import REPLACEMENT
from common.paths import Home
from tests.e2e.triton_process import Triton, triton
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level, sentencepiece

TEXTS = (
    "The quick brown fox  jumps\n\n over the lazy dog.",
    " 你好，世界！今天天气很好。",
    "👩‍👩‍👧‍👦 family, flag 🇨🇳, keycap 1️⃣",
    "naïve Москва مرحبا ᚠᛇ 𝔘𝔫𝔦",
)
TOKENIZERS = {"bytes": byte_level(), "pieces": sentencepiece()}
CHAT = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """Two models with tokenizers of different kinds in one repository."""
    home = Home(tmp_path_factory.mktemp("ensemble"))
    models: dict[str, dict[str, Any]] = {}
    for name, tokenizer in TOKENIZERS.items():
        make_package(home.root / name, tokenizer, settings={"chat_template": CHAT})
        models[name] = {"engine": "cpu", "model_path": name, "max_input_len": 256, "max_batch_size": 8}
    render(parse_config({"models": models}), home)
    with triton(home.repository, home.root, engine=Path(__file__).with_name("echo_engine.py")) as running:
        yield running


def generate_stream(server: Triton, model: str, text: str, **fields: Any) -> list[str]:
    """The chunks of `text_output` of one streamed request."""
    body = {"text_input": text, "max_tokens": 1000, "stream": True, **fields}
    reply = requests.post(
        f"{server.http}/v2/models/{model}/generate_stream", json=body, stream=True, timeout=60
    )
    assert reply.status_code == 200, reply.text
    lines = (line for line in reply.iter_lines() if line.startswith(b"data: "))
    return [json.loads(line[6:])["text_output"] for line in lines]


def infer_stream(server: Triton, model: str, text: str, request_id: str) -> list[str]:
    """The same over tritonclient's decoupled gRPC stream."""
    inputs = [
        _tensor("text_input", np.array([[text.encode()]], dtype=object)),
        _tensor("max_tokens", np.array([[1000]], dtype=np.int32)),
        _tensor("stream", np.array([[True]])),
    ]
    answers: queue.Queue[Any] = queue.Queue()
    chunks = []
    with grpcclient.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(model, inputs, request_id=request_id, enable_empty_final_response=True)
        while True:
            answer = answers.get(timeout=60)
            assert not isinstance(answer, Exception), answer
            output = answer.as_numpy("text_output")
            if output is not None and output.size:
                chunks.append(output.flat[0].decode())
            if answer.get_response().parameters["triton_final_response"].bool_param:
                return chunks


def _tensor(name: str, values: Any) -> Any:
    kinds = {"O": "BYTES", "i": "INT32", "b": "BOOL"}
    tensor = grpcclient.InferInput(name, list(values.shape), kinds[values.dtype.kind])
    tensor.set_data_from_numpy(values)
    return tensor


def expected(model: str, text: str) -> str:
    tokenizer = TOKENIZERS[model]
    return tokenizer.decode(tokenizer.encode(text).ids)


@pytest.mark.e2e
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("model", TOKENIZERS)
def test_streamed_text_is_exact(server: Triton, model: str, text: str) -> None:
    wanted = expected(model, text)
    over_http = generate_stream(server, model, text, id=uuid.uuid4().hex)
    over_grpc = infer_stream(server, model, text, uuid.uuid4().hex)
    assert "".join(over_http) == "".join(over_grpc) == wanted
    assert len(over_http) == len(TOKENIZERS[model].encode(text).ids)
    assert REPLACEMENT not in "".join(over_http)


@pytest.mark.e2e
@pytest.mark.parametrize("model", TOKENIZERS)
def test_one_response_without_streaming(server: Triton, model: str) -> None:
    body = {"text_input": TEXTS[1], "max_tokens": 1000, "id": uuid.uuid4().hex}
    reply = requests.post(f"{server.http}/v2/models/{model}/generate", json=body, timeout=60)
    assert reply.json()["text_output"] == expected(model, TEXTS[1])


@pytest.mark.e2e
def test_many_streams_at_once_stay_apart(server: Triton) -> None:
    jobs = [(model, f"{text} #{number}") for number in range(4) for model in TOKENIZERS for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        got = pool.map(lambda job: generate_stream(server, *job, id=uuid.uuid4().hex), jobs)
        assert ["".join(chunks) for chunks in got] == [expected(*job) for job in jobs]


@pytest.mark.e2e
def test_the_same_id_again_and_again(server: Triton) -> None:
    """As many clients do; the first request is cut inside a character each time."""
    for text in TEXTS:
        cut = generate_stream(server, "bytes", "🌏🌏", id="1", max_tokens=2)
        assert "".join(cut) == ""
        assert "".join(generate_stream(server, "bytes", text, id="1")) == expected("bytes", text)


@pytest.mark.e2e
def test_a_request_without_id(server: Triton) -> None:
    for text in TEXTS:
        assert "".join(generate_stream(server, "bytes", text)) == expected("bytes", text)


@pytest.mark.e2e
def test_chat_template_by_request_parameter(server: Triton) -> None:
    chunks = generate_stream(server, "bytes", "hi", id="c", parameters={"apply_chat_template": True})
    assert "".join(chunks) == "[user] hi"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_input": ""}, "The prompt is empty"),
        ({"text_input": "x" * 300}, "300 tokens long, at most 256"),
        ({"text_input": "x", "embedding_bias_words": ["a", "b"]}, "both words and weights"),
    ],
)
def test_bad_input_is_a_clear_error(server: Triton, fields: dict[str, Any], message: str) -> None:
    body = {"max_tokens": 5, **fields}
    reply = requests.post(f"{server.http}/v2/models/bytes/generate", json=body, timeout=60)
    assert reply.status_code == 400
    assert message in reply.json()["error"]


@pytest.mark.e2e
@pytest.mark.parametrize("model", TOKENIZERS)
def test_bls_streams_exact_text_at_once_without_and_with_equal_ids(server: Triton, model: str) -> None:
    jobs = [(text, fields) for text in TEXTS * 3 for fields in ({}, {"id": "same"})]
    with ThreadPoolExecutor(len(jobs)) as pool:
        got = pool.map(
            lambda job: generate_stream(server, f"{model}-tensorrt_llm_bls", job[0], **job[1]), jobs
        )
        assert ["".join(chunks) for chunks in got] == [expected(model, text) for text, _ in jobs]


@pytest.mark.e2e
def test_bls_cuts_at_stop_words_across_tokens(server: Triton) -> None:
    text = "The quick brown fox jumps over the lazy dog"
    chunks = generate_stream(server, "bytes-tensorrt_llm_bls", text, stop_words=["x jum", "dog"])
    assert "".join(chunks) == "The quick brown fo"
    not_found = generate_stream(server, "bytes-tensorrt_llm_bls", text, stop_words=["dogs"])
    assert "".join(not_found) == text


@pytest.mark.e2e
def test_bls_without_streaming_and_with_an_error(server: Triton) -> None:
    url = f"{server.http}/v2/models/bytes-tensorrt_llm_bls/generate"
    whole = requests.post(url, json={"text_input": TEXTS[2], "max_tokens": 1000}, timeout=60)
    assert whole.json()["text_output"] == expected("bytes", TEXTS[2])
    empty = requests.post(url, json={"text_input": "", "max_tokens": 5}, timeout=60)
    assert "The prompt is empty" in empty.json()["error"]


@pytest.mark.e2e
def test_bls_stops_the_engine_when_the_client_leaves(server: Triton) -> None:
    url = f"{server.http}/v2/models/bytes-tensorrt_llm_bls/generate_stream"
    body = {"text_input": "endless ", "max_tokens": 100_000, "min_tokens": 100_000, "stream": True}
    live = server.log.with_name("live")
    with requests.post(url, json=body, stream=True, timeout=60) as reply:
        lines = reply.iter_lines()
        for _ in range(10):
            next(lines)
        assert live.read_text() == "1"
    started = time.monotonic()
    while live.read_text() != "0":
        assert time.monotonic() - started < 5, "the engine goes on"
        time.sleep(0.02)


@pytest.mark.e2e
def test_a_broken_request_to_postprocessing_is_its_own_error(server: Triton) -> None:
    """Tokens of one beam, lengths of two."""
    inputs = [
        {"name": "TOKENS_BATCH", "datatype": "INT32", "shape": [1, 1, 1], "data": [5]},
        {"name": "SEQUENCE_LENGTH", "datatype": "INT32", "shape": [1, 2], "data": [1, 1]},
    ]
    url = f"{server.http}/v2/models/bytes-postprocessing/infer"
    reply = requests.post(url, json={"id": "x", "inputs": inputs}, timeout=60)
    assert reply.status_code >= 400
    assert "cannot be decoded" in reply.json()["error"]
    assert "".join(generate_stream(server, "bytes", "on it goes", id="y")) == "on it goes"
