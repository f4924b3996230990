"""Tokens on their way through the proxy: written at once, held while the client does not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from common.errors import EngineError
from proxy.generation import Timings
from proxy.relay import Relay


class ScriptedGeneration:
    """A generation whose texts arrive when the test says so; an exception stands for the engine's."""

    def __init__(self) -> None:
        self.timings = Timings(0.0, answers=[0.0])
        self.ended = False
        self.arrived: list[str | Exception] = []
        self.listener: Callable[[], None] | None = None

    def listen(self, listener: Callable[[], None] | None) -> Callable[[], bool]:
        self.listener = listener
        return lambda: bool(self.arrived)

    def take_text(self) -> str:
        text = self.arrived.pop(0)
        if isinstance(text, Exception):
            raise text
        if text == "<stop>":
            assert self.listener is not None
            self.listener()  # as the end of the engine's answer does
            self.ended = True
            return ""
        return text

    def arrive(self, *texts: str | Exception) -> None:
        self.arrived += texts
        if self.listener is not None:
            self.listener()


class Client:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.writable = True
        self.on_writable: Callable[[], None] | None = None

    def write_part(self, body: bytes) -> None:
        self.written.append(body)


async def relaying(generation: ScriptedGeneration, client: Client) -> tuple[Relay, asyncio.Task[None]]:
    relay = Relay(generation, str.encode, client)  # type: ignore[arg-type]
    task = asyncio.ensure_future(relay.run())
    await asyncio.sleep(0)
    return relay, task


async def test_text_is_written_before_the_loop_turns() -> None:
    generation, client = ScriptedGeneration(), Client()
    _, task = await relaying(generation, client)
    generation.arrive("a", "", "b")
    generation.arrive("c")
    assert client.written == [b"ab", b"c"]
    generation.arrive("<stop>")
    await asyncio.wait_for(task, 5)
    assert generation.listener is None and client.on_writable is None


async def test_text_waits_while_the_client_does_not_read() -> None:
    generation, client = ScriptedGeneration(), Client()
    _, task = await relaying(generation, client)
    client.writable = False
    generation.arrive("a")
    assert client.written == [] and generation.arrived == ["a"]
    client.writable = True
    assert client.on_writable is not None
    client.on_writable()
    assert client.written == [b"a"]
    generation.arrive("<stop>")
    await asyncio.wait_for(task, 5)


async def test_text_that_comes_with_the_end_is_left_to_go_out_with_it() -> None:
    generation, client = ScriptedGeneration(), Client()
    relay, task = await relaying(generation, client)
    generation.arrive("a", "<stop>")
    await asyncio.wait_for(task, 5)
    assert (client.written, relay.rest) == ([], b"a")


async def test_a_failure_reaches_the_request_and_not_the_connection() -> None:
    generation, client = ScriptedGeneration(), Client()
    relay, task = await relaying(generation, client)
    generation.arrive("a", EngineError("It broke."))
    with pytest.raises(EngineError):
        await asyncio.wait_for(task, 5)
    assert relay.rest == b"a"
    generation.arrive("late")
    assert client.written == []
