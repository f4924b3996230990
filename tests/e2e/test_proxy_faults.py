"""Faults in the real stack: a killed worker or tritonserver, overload, bad requests, slow clients."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.phased_stack import MODEL, PHASES, PLAIN, STREAM, PhasedStack, phased_stack, read_until
from tests.proxy.stack import parse_events
from tests.worker.triton import wait_until

pytestmark = pytest.mark.e2e
MID_STREAM = PHASES[3]
ENGINE_MODEL = f"{MODEL}-tensorrt_llm"
SHORT = {"modelId": MODEL, "prompt": "hi", "maxTokens": 50}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PhasedStack]:
    with phased_stack(tmp_path_factory.mktemp("faults"), model={"max_output_len": 4096}) as stack:
        yield stack


@pytest.fixture
def stack(running: PhasedStack) -> Iterator[PhasedStack]:
    yield running
    running.close_all()


def post(stack: PhasedStack, path: str, **fields: Any) -> requests.Response:
    return requests.post(stack.url + path, json={**SHORT, **fields}, timeout=60)


def serves(stack: PhasedStack) -> bool:
    answer = post(stack, PLAIN)
    if answer.status_code == 200:
        return bool(answer.json()["usage"]["completionTokens"] == 50)
    error = answer.json()["error"]
    assert answer.status_code == 503 and answer.headers["Retry-After"], error
    assert error["code"] in ("model_not_ready", "upstream_unreachable")
    return False


def ending(connection: socket.socket) -> dict[str, Any]:
    """The last event of a stream that broke."""
    answer = read_until(connection, "\r\n0\r\n\r\n")
    assert "[DONE]" not in answer
    last: dict[str, Any] = json.loads(answer.rsplit("data: ", 1)[1].split("\n\n")[0])
    return last


def test_a_killed_worker_ends_streams_in_words_and_comes_back(stack: PhasedStack) -> None:
    connection, request = stack.enter(MID_STREAM, STREAM)
    [worker] = stack.workers()
    worker.send_signal(signal.SIGKILL)
    last = ending(connection)
    assert (last["finishReason"], last["error"]["code"]) == ("error", "engine")
    assert "killed by signal 9" in last["error"]["why"]
    assert last["usage"]["completionTokens"] >= MID_STREAM.count
    wait_until(lambda: serves(stack), 30.0)
    stack.forget(request)


def test_bad_requests_do_not_disturb_a_stream(stack: PhasedStack) -> None:
    connection, request = stack.enter(MID_STREAM, STREAM)
    for body in (b"{", b'{"modelId":"m","prompt":"\xff"}', b'{"modelId":' + b"[" * 100_000):
        answer = requests.post(stack.url + STREAM, data=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    answer = requests.post(stack.url + STREAM, data=b"x" * (5 << 20), timeout=60)
    assert answer.status_code == 413
    idle = [stack.connect() for _ in range(1000)]
    assert serves(stack)
    before = sum(entry["request"] == request for entry in stack.entries())
    wait_until(lambda: sum(entry["request"] == request for entry in stack.entries()) > before + 5, 10.0)
    for one in idle:
        one.close()
    connection.close()
    stack.cancelled_at(request)


def test_a_slow_client_is_waited_for_and_gets_all(stack: PhasedStack) -> None:
    """Its answer is larger than all buffers on the way, and comes faster than it reads."""
    connection = stack.connect(receive_buffer=4096)
    body = json.dumps({**SHORT, "maxTokens": 4000})
    head = f"POST {STREAM} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    time.sleep(1.0)
    data = b""
    while part := connection.recv(8192):
        data += part
        time.sleep(0.001)
    assert b'"completionTokens":4000' in data and b"data: [DONE]" in data


def test_tritonserver_killed_and_started_again(tmp_path: Path) -> None:
    with phased_stack(tmp_path) as stack:
        connection, _ = stack.enter(MID_STREAM, STREAM)
        stack.triton.process.kill()
        stack.triton.process.wait()
        last = ending(connection)
        assert (last["finishReason"], last["error"]["code"]) == ("error", "upstream_lost")
        assert post(stack, STREAM).json()["error"]["code"] == "upstream_unreachable"
        assert requests.get(f"{stack.url}/health/ready", timeout=10).status_code == 503
        stack.triton.process = stack.triton._spawn()
        stack.triton.wait_ready()
        assert not serves(stack)
        stack.triton.load(ENGINE_MODEL)
        assert serves(stack)
        assert requests.get(f"{stack.url}/health/ready", timeout=10).status_code == 200


def test_overload_is_refused_before_any_work(tmp_path: Path) -> None:
    with phased_stack(tmp_path, "--max-queue=0", model={"max_batch_size": 2}) as stack:
        for _ in range(2):
            stack.enter(MID_STREAM, STREAM)
        asked = len([entry for entry in stack.entries() if entry["event"] == "queued"])
        for path in (STREAM, PLAIN):
            answer = post(stack, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
            assert answer.headers["Retry-After"] == "1"
        assert len([entry for entry in stack.entries() if entry["event"] == "queued"]) == asked
        stack.close_all()
        answer = post(stack, STREAM)
        assert parse_events(answer.content)[-1] == "[DONE]"
