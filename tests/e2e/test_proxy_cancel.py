"""Leaving clients, through the whole real stack: the engine stops in every phase and does not start again."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack

import pytest

from tests.e2e.conftest import RunningService
from tests.e2e.test_acceptance import active_requests, stream

# An engine ends a request between two steps, and a prefill step may take long on a busy machine; the requests
# here would run for a minute. benchmarks/cancellation.py measures what is not the engine's own step.
BOUND_SECONDS = 15.0
TOKENS = 2000
IDLE_SECONDS = 0.3
PATHS = ["/api/v1/inference/stream", "/api/v1/inference"]
STORY = "Write a very long story about the sea."
LONG = " ".join(f"word{index}" for index in range(900))


def send(service: RunningService, path: str, prompt: str, tokens: int) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    fields = {"modelId": service.model, "prompt": prompt, "maxTokens": tokens, "minTokens": tokens}
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {service.api_key}\r\nContent-Length: {len(body)}\r\n"
    )
    connection.sendall(f"{head}\r\n".encode() + body)
    return connection


def assert_engine_stops(service: RunningService) -> None:
    """Idle for good: a request that was still on its way when its client left reaches the engine first."""
    left = idle_since = time.monotonic()
    while time.monotonic() - idle_since < IDLE_SECONDS:
        assert time.monotonic() - left < BOUND_SECONDS
        if active_requests(service):
            idle_since = time.monotonic()
        time.sleep(0.01)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "prompt, seconds", [(STORY, 0.0), (LONG, 0.15), (LONG, 0.4), (STORY, 1.0)],
    ids=["at once", "prefill", "about the first token", "mid-stream"],
)  # fmt: skip
def test_a_client_that_leaves(service: RunningService, path: str, prompt: str, seconds: float) -> None:
    connection = send(service, path, prompt, TOKENS)
    time.sleep(seconds)
    connection.close()
    assert_engine_stops(service)


def test_a_client_that_leaves_while_queued(service: RunningService) -> None:
    """More requests than the engine runs at once (64): the last ones wait."""
    with ExitStack() as stack:
        held = [send(service, PATHS[0], f"{STORY} {index}", TOKENS) for index in range(70)]
        for connection in held:
            stack.callback(connection.close)
        time.sleep(1.0)
    assert_engine_stops(service)


def test_a_client_that_leaves_at_the_last_token(service: RunningService) -> None:
    connection = send(service, PATHS[0], STORY, 4)
    data = b""
    while data.count(b'"text"') < 3:
        data += connection.recv(65536)
    connection.close()
    assert_engine_stops(service)
    assert stream(service, "What is the capital of France?").done
