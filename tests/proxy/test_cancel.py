"""A client that leaves stops the engine's work, whatever the phase; so do a timeout and a drain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

import pytest

from tests.proxy.stack import MODEL, Stack, text_of

LONG = "word " * 200
PHASES: dict[str, dict[str, float]] = {
    "before the first token": {"prefill": 5.0, "leave": 0.1},
    "at the first token": {"prefill": 0.1, "pace": 0.05, "leave": 0.11},
    "mid-stream": {"pace": 0.02, "leave": 0.2},
    "after the last token": {"end_lag": 5.0, "leave": 0.3},
}
BOUND_SECONDS = (
    1.0  # far from the 5 s of a phase, also on a busy machine; benchmarks/cancellation.py measures
)


async def leave_after(stack: Stack, path: str, seconds: float, fields: Any = None) -> float:
    """Send a request on a raw socket, close the socket; returns when."""
    host, port = stack.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(fields or {"modelId": MODEL, "prompt": "hi"}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {stack.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await asyncio.sleep(seconds)
    writer.close()
    return perf_counter()


async def until(condition: Callable[[], bool], seconds: float = 2.0) -> bool:
    deadline = perf_counter() + seconds
    while not condition() and perf_counter() < deadline:
        await asyncio.sleep(0.002)
    return condition()


@pytest.mark.parametrize("path", ["/api/v1/inference/stream", "/api/v1/inference"])
@pytest.mark.parametrize("phase", PHASES)
async def test_a_client_that_leaves_stops_the_engine(stack: Stack, phase: str, path: str) -> None:
    script = dict(PHASES[phase])
    leave = script.pop("leave")
    stack.script("abc" if "last" in phase else LONG, **script)
    left = await leave_after(stack, path, leave)
    assert await until(lambda: bool(stack.triton.stops) and bool(stack.triton.disconnects))
    request_id = stack.triton.requests[0]["id"]
    assert {stopped for stopped, _ in stack.triton.stops} == {request_id}
    assert stack.triton.stops[0][1] - left < BOUND_SECONDS
    assert stack.triton.disconnects[0][1] - left < BOUND_SECONDS
    assert await until(lambda: not stack.triton.running and not stack.service.active)


async def test_a_client_that_leaves_while_the_connection_opens(stack: Stack) -> None:
    """The request must not start after its client has gone."""
    stack.script(LONG, pace=0.05)
    await leave_after(stack, "/api/v1/inference/stream", 0.0)
    await asyncio.sleep(0.2)
    assert not stack.triton.running
    assert not stack.service.active


async def test_timeout_before_the_first_token_is_an_http_error(stack: Stack) -> None:
    stack.script(LONG, prefill=5.0)
    body = {"modelId": MODEL, "prompt": "hi", "timeoutMs": 100}
    status, _, data = await stack.post("/api/v1/inference/stream", body)
    assert status == 504
    assert json.loads(data)["error"]["code"] == "timeout"
    assert await until(lambda: bool(stack.triton.stops))


async def test_timeout_mid_stream_ends_typed_and_without_done(stack: Stack) -> None:
    stack.script(LONG, pace=0.02)
    events = await stack.events(timeoutMs=200)
    assert "[DONE]" not in events
    assert events[-1]["finishReason"] == "timeout"
    assert events[-1]["error"]["code"] == "timeout"
    assert LONG.startswith(text_of(events))
    assert await until(lambda: bool(stack.triton.stops))


async def test_timeout_of_a_plain_request_returns_what_there_is(stack: Stack) -> None:
    stack.script(LONG, pace=0.02)
    body = {"modelId": MODEL, "prompt": "hi", "timeoutMs": 200}
    status, _, data = await stack.post("/api/v1/inference", body)
    assert status == 200
    answer = json.loads(data)
    assert answer["finishReason"] == "timeout"
    assert answer["text"] and LONG.startswith(answer["text"])


async def test_drain_refuses_new_work_and_ends_running_work_in_words(
    make_stack: Callable[..., Any],
) -> None:
    async with make_stack(drain=0.3) as stack:
        stack.script(LONG, pace=0.02)
        running = asyncio.ensure_future(stack.events())
        await asyncio.sleep(0.15)
        stack.service.begin_drain()
        assert (await stack.get("/health/ready"))[0] == 503
        status, headers, data = await stack.post("/api/v1/inference", {"modelId": MODEL, "prompt": "hi"})
        assert (status, json.loads(data)["error"]["code"]) == (503, "draining")
        assert headers["Retry-After"] == "1"
        events = await running
        assert events[-1]["finishReason"] == "cancelled"
        assert events[-1]["error"]["code"] == "draining"
        assert "[DONE]" not in events


async def test_a_stop_string_stops_the_engine(stack: Stack) -> None:
    stack.script(LONG, pace=0.01)
    events = await stack.events(stop=["word word word"])
    assert events[-1] == "[DONE]"
    assert events[-2]["finishReason"] == "stop"
    assert events[-2]["stopReason"] == "word word word"
    assert text_of(events) == ""
    assert await until(lambda: bool(stack.triton.stops))


async def test_many_streams_end_while_others_leave(stack: Stack) -> None:
    stack.script("word " * 30, pace=0.005)
    leaving = [leave_after(stack, "/api/v1/inference/stream", 0.05) for _ in range(10)]
    results = await asyncio.gather(*(stack.events() for _ in range(20)), *leaving)
    streams = results[:20]
    assert all(events[-1] == "[DONE]" for events in streams)
    assert {text_of(events) for events in streams} == {"word " * 30}
    with suppress(asyncio.TimeoutError):
        await until(lambda: not stack.service.active)
    assert not stack.service.active


@pytest.mark.parametrize("streams", [True, False])
async def test_leaving_stops_every_choice(stack: Stack, streams: bool) -> None:
    stack.script(LONG, pace=0.02)
    fields = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "n": 3, "stream": streams}
    await leave_after(stack, "/v1/chat/completions", 0.2, fields)
    assert await until(lambda: len({stopped for stopped, _ in stack.triton.stops}) == 3)
    assert await until(lambda: not stack.triton.running and not stack.service.active)
