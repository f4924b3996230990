"""Load on demand, unload when idle, and which of several tritonservers a request goes to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy import loading
from proxy.loading import LastUse
from proxy.router import Router
from tests.proxy.fake_triton import FakeTriton
from tests.proxy.stack import MODEL, Stack, text_of
from tests.proxy.test_cancel import until

ENGINE = f"{MODEL}-tensorrt_llm"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "CHECK_SECONDS", 0.05)


async def test_idle_model_goes_and_comes_back_for_a_request(make_stack: Callable[..., Any]) -> None:
    async with make_stack(model={"idle_unload_seconds": 0.3}) as stack:
        stack.script("hello")
        assert text_of(await stack.events()) == "hello"
        assert await until(lambda: ("unload", ENGINE) in stack.triton.controls)
        assert (await stack.get("/health/ready"))[0] == 200
        assert text_of(await stack.events()) == "hello"
        assert stack.triton.controls == [("unload", ENGINE), ("load", ENGINE)]


async def test_a_model_in_use_is_not_idle(make_stack: Callable[..., Any]) -> None:
    async with make_stack(model={"idle_unload_seconds": 0.2}) as stack:
        stack.script("word " * 20, pace=0.03)
        assert (await stack.events())[-1] == "[DONE]"
        assert not stack.triton.controls


async def test_requests_that_come_together_load_once(make_stack: Callable[..., Any]) -> None:
    async with make_stack(model={"idle_unload_seconds": 60}) as stack:
        stack.script("hello")
        stack.triton.models[ENGINE] = ""
        await stack.service.router.refresh()
        streams = await asyncio.gather(*(stack.events() for _ in range(8)))
        assert {text_of(events) for events in streams} == {"hello"}
        assert stack.triton.controls == [("load", ENGINE)]


async def test_a_request_waits_for_an_unload_to_end(make_stack: Callable[..., Any]) -> None:
    async with make_stack(model={"idle_unload_seconds": 60}) as stack:
        stack.script("hello")
        stack.triton.models[ENGINE] = "UNLOADING"
        await stack.service.router.refresh()
        waiting = asyncio.ensure_future(stack.events())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        stack.triton.models[ENGINE] = ""
        assert text_of(await waiting) == "hello"
        assert stack.triton.controls == [("load", ENGINE)]


async def test_without_the_setting_nothing_is_loaded(stack: Stack) -> None:
    stack.triton.models[ENGINE] = ""
    stack.script("x", status=503, error="unloaded")
    status, _, data = await stack.post("/api/v1/inference", {"modelId": MODEL, "prompt": "a"})
    assert (status, json.loads(data)["error"]["code"]) == (503, "model_not_ready")
    assert not stack.triton.controls


def test_last_use_is_shared_between_workers(tmp_path: Path) -> None:
    one, other = LastUse(tmp_path), LastUse(tmp_path)
    other._times["m"] = 0.0
    assert other.age("m") > 1000
    one.touch("m")
    assert other.age("m") < 5


async def test_a_request_goes_to_the_server_that_has_its_model() -> None:
    first, second = FakeTriton({"a-tensorrt_llm": "READY"}), FakeTriton({"b-tensorrt_llm": "READY"})
    await first.start()
    await second.start()
    router = Router((first.url, second.url))
    await router.refresh()
    assert router.client_for("a").pool.url == first.url
    assert router.client_for("b").pool.url == second.url
    await second.stop()
    await router.refresh()
    assert router.state("b") == "UNLOADED"
    assert router.client_for("a").pool.url == first.url
    with pytest.raises(Exception, match="No tritonserver has b ready"):
        router.client_for("b")
    await first.stop()
    await router.refresh()
    assert router.state("a") == "UNREACHABLE"
    await router.close()
