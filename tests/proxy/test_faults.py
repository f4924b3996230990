"""Engine and server faults, hostile clients, overload: every ending is an honest one."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from proxy import guard
from tests.proxy.stack import MODEL, Stack, text_of

LONG = "word " * 60
BODY = {"modelId": MODEL, "prompt": "hi"}
STREAM = "/api/v1/inference/stream"


async def test_engine_error_mid_stream_is_a_typed_event_without_done(stack: Stack) -> None:
    stack.script(LONG, fail_after=5, pace=0.005)
    events = await stack.events()
    assert "[DONE]" not in events
    assert events[-1]["finishReason"] == "error"
    assert events[-1]["error"]["code"] == "engine"
    assert events[-1]["error"]["why"] == "the engine said no"
    assert LONG.startswith(text_of(events)) and text_of(events)


@pytest.mark.parametrize("path", [STREAM, "/api/v1/inference"])
async def test_engine_error_before_the_first_token_is_an_http_error(stack: Stack, path: str) -> None:
    stack.script(LONG, fail_after=0)
    status, _, data = await stack.post(path, BODY)
    assert status == 502
    assert json.loads(data)["error"]["why"] == "the engine said no"


async def test_model_not_ready(stack: Stack) -> None:
    stack.script(LONG, status=503, error="model is loading")
    status, headers, data = await stack.post(STREAM, BODY)
    assert status == 503
    assert json.loads(data)["error"]["code"] == "model_not_ready"
    assert "Retry-After" in headers


@pytest.mark.parametrize(
    "error, status, code",
    [
        ("The worker died. It is being started again; try again in a few seconds.", 503, "model_not_ready"),
        ("The queue is full: 9 requests run or wait. Try again soon.", 503, "model_not_ready"),
        ("The worker died. This request was lost; send it again.", 502, "engine"),
        ("temperature is -5; allowed is 0 to 100.", 400, "refused_by_engine"),
    ],
)
async def test_a_400_of_tritonserver_is_told_apart_by_its_words(
    stack: Stack, error: str, status: int, code: str
) -> None:
    stack.script(LONG, status=400, error=error)
    answered, _, data = await stack.post(STREAM, BODY)
    assert (answered, json.loads(data)["error"]["code"]) == (status, code)
    assert error in json.loads(data)["error"]["message"]


async def test_connection_killed_mid_stream(stack: Stack) -> None:
    stack.script(LONG, kill_after=5, pace=0.005)
    events = await stack.events()
    assert events[-1]["error"]["code"] == "upstream_lost"
    assert "[DONE]" not in events


async def test_tritonserver_killed_then_restarted(stack: Stack) -> None:
    stack.script(LONG)
    assert (await stack.events())[-1] == "[DONE]"
    port = int(stack.triton.url.rsplit(":", 1)[1])
    await stack.triton.stop()
    status, _, data = await stack.post(STREAM, BODY)
    assert (status, json.loads(data)["error"]["code"]) == (503, "upstream_unreachable")
    assert (await stack.get("/health/ready"))[0] == 503
    await stack.triton.start(port)
    assert (await stack.events())[-1] == "[DONE]"
    assert (await stack.get("/health/ready"))[0] == 200


async def test_slow_client_pauses_the_engine_side_and_loses_nothing(
    make_stack: Callable[..., Any],
) -> None:
    async with make_stack(model={"max_output_len": 1 << 20}) as stack:
        ids = stack.script("word " * 6000)
        reader, writer = await _send(stack, json.dumps(BODY).encode(), limit=2048)
        await asyncio.sleep(0.1)
        generation = next(iter(stack.service.active))
        sent = -1
        while generation.completion_tokens != sent:
            sent = generation.completion_tokens
            await asyncio.sleep(0.3)
        assert sent < len(ids)
        data = await asyncio.wait_for(reader.read(-1), 60)
        writer.close()
        assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert f'"completionTokens":{len(ids)}'.encode() in data


async def test_a_client_that_never_reads_is_dropped(make_stack: Callable[..., Any]) -> None:
    async with make_stack(write_timeout=0.3, model={"max_output_len": 1 << 20}) as stack:
        stack.script("word " * 20000)
        _, writer = await _send(stack, json.dumps(BODY).encode(), limit=1024)
        for _ in range(100):
            await asyncio.sleep(0.1)
            if stack.triton.disconnects:
                break
        assert stack.triton.disconnects
        await asyncio.sleep(0.05)
        assert not stack.service.active
        writer.close()


async def test_overload_is_refused_before_any_work(make_stack: Callable[..., Any]) -> None:
    async with make_stack(max_queue=1, model={"max_batch_size": 1}) as stack:
        stack.script(LONG, pace=0.05)
        running = [asyncio.ensure_future(stack.events()) for _ in range(2)]
        await asyncio.sleep(0.1)
        status, headers, data = await stack.post(STREAM, BODY)
        assert (status, json.loads(data)["error"]["code"]) == (503, "overloaded")
        assert headers["Retry-After"] == "1"
        assert len(stack.triton.requests) == 2
        for task in running:
            task.cancel()


async def test_concurrency_of_one_key(make_stack: Callable[..., Any]) -> None:
    async with make_stack(max_per_key=1) as stack:
        stack.script(LONG, pace=0.05)
        running = asyncio.ensure_future(stack.events())
        await asyncio.sleep(0.1)
        status, _, data = await stack.post(STREAM, BODY)
        assert (status, json.loads(data)["error"]["code"]) == (429, "too_many_requests")
        running.cancel()


BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "invalid_json"),
    "bad UTF-8": (b'{"modelId":"m","prompt":"\xff"}', "invalid_json"),
    "lone surrogate": (b'{"modelId":"m","prompt":"\\ud800"}', "invalid_json"),
    "deep": (b'{"modelId":' + b"[" * 100_000, "invalid_json"),
    "not an object": (b"[]", "invalid_field"),
    "empty": (b"", "invalid_json"),
    "unknown field": (b'{"modelId":"m","prompt":"a","maxToken":1}', "unknown_field"),
    "wrong type": (b'{"modelId":"m","prompt":"a","maxTokens":"1"}', "invalid_field"),
    "out of range": (b'{"modelId":"m","prompt":"a","topP":1.5}', "invalid_field"),
    "no prompt": (b'{"modelId":"m"}', "invalid_field"),
    "empty prompt": (b'{"modelId":"m","prompt":""}', "prompt_empty"),
    "both": (b'{"modelId":"m","prompt":"a","messages":[{"role":"user","content":"a"}]}', "invalid_field"),
    "too many tokens": (b'{"modelId":"m","prompt":"a","maxTokens":100000}', "max_tokens_too_large"),
    "long prompt": (b'{"modelId":"m","prompt":"' + b"a b " * 5000 + b'"}', "prompt_too_long"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_bad_body(stack: Stack, name: str) -> None:
    body, code = BAD_BODIES[name]
    status, _, data = await stack.post(STREAM, body)
    error = json.loads(data)["error"]
    assert (status, error["code"]) == (400, code)
    assert error["message"] and error["hint"]
    assert not stack.triton.requests


async def test_the_error_names_field_found_and_nearest(stack: Stack) -> None:
    _, _, data = await stack.post(STREAM, {**BODY, "maxToken": 1, "topK": -1})
    message = json.loads(data)["error"]["message"]
    assert "maxToken: unknown field, did you mean maxTokens?" in message
    assert "topK: found -1" in message


async def test_unknown_model_names_the_known(stack: Stack) -> None:
    status, _, data = await stack.post(STREAM, {**BODY, "modelId": "x"})
    assert status == 404
    assert MODEL in json.loads(data)["error"]["hint"]


async def test_oversized_body(make_stack: Callable[..., Any]) -> None:
    async with make_stack(max_body_bytes=1000) as stack:
        status, _, data = await stack.post(STREAM, b"x" * 1001)
        assert (status, json.loads(data)["error"]["code"]) == (413, "body_too_large")


async def test_slow_body(make_stack: Callable[..., Any]) -> None:
    async with make_stack(body_timeout=0.2) as stack:
        reader, _ = await _send(stack, b"{", length=100)
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 2)


async def test_slow_headers(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.2)
    reader, writer = await _connect(stack)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n")
    assert b" 408 " in await asyncio.wait_for(reader.readline(), 2)
    assert await asyncio.wait_for(reader.read(-1), 2)


async def test_huge_headers(stack: Stack) -> None:
    reader, writer = await _connect(stack)
    writer.write(b"GET /health/live HTTP/1.1\r\nX: " + b"a" * 200_000)
    assert b" 431 " in await asyncio.wait_for(reader.readline(), 2)


async def test_a_thousand_idle_connections_do_not_disturb(stack: Stack) -> None:
    idle = [await _connect(stack) for _ in range(1000)]
    stack.script(LONG)
    assert (await stack.events())[-1] == "[DONE]"
    for _, writer in idle:
        writer.transport.abort()


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "ew-wrong"}, {"X-API-Key": "é"}])
async def test_wrong_keys(stack: Stack, headers: dict[str, str]) -> None:
    async with stack.client.post(stack.url + STREAM, json=BODY, headers=headers) as answer:
        assert answer.status == 401
        assert (await answer.json())["error"]["code"] == "unauthorized"


async def _connect(stack: Stack, limit: int = 1 << 16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = stack.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * limit)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    return await asyncio.open_connection(sock=connection, limit=limit)


async def _send(
    stack: Stack, body: bytes, *, length: int | None = None, limit: int = 1 << 16
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await _connect(stack, limit)
    head = (
        f"POST {STREAM} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: {stack.key}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    return reader, writer
