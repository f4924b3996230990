"""The worker's loop around a scripted engine, over a real socket."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from worker import protocol
from worker.protocol import (
    Finish,
    FrameReader,
    FrameType,
    GenerationRequest,
    Ready,
    Refusal,
    Sampling,
    Stats,
    Status,
    Update,
)
from worker.serving import Connection, Inbox, Load, Server
from worker.validate import Limits, RequestRefused

TIMEOUT_S = 10.0


class ScriptedFailure(Exception):
    """What an engine raises when it breaks."""


class CountingEngine:
    """Answers each request with 0, 1, 2, ... one token a step. Faults on request."""

    limits = Limits(vocab_size=1000, max_input_len=50, max_output_len=5000, max_total_len=5000)
    ready = Ready("counting", 1000, 8, 50, 5000, 5000, 1)

    def __init__(self) -> None:
        self.made: dict[int, int] = {}
        self.wanted: dict[int, int] = {}
        self.failure: Exception | None = None
        self.unsubmittable: set[int] = set()
        self.dropped: set[int] = set()

    def submit(self, request: GenerationRequest) -> None:
        if request.request_id in self.unsubmittable:
            raise RequestRefused("Not this one.", status=Status.UNSUPPORTED, code="scripted")
        self.made[request.request_id] = 0
        self.wanted[request.request_id] = request.sampling.max_tokens

    def cancel(self, request_id: int) -> None:
        self.made.pop(request_id, None)

    @property
    def busy(self) -> bool:
        return bool(self.made)

    @property
    def active(self) -> int:
        return len(self.made)

    def load(self) -> Load:
        return Load(len(self.made), 0.25)

    def step(self) -> list[Update | Refusal]:
        time.sleep(0.001)
        if self.failure:
            raise self.failure
        results: list[Update | Refusal] = []
        for request_id in list(self.made):
            if request_id in self.dropped:
                del self.made[request_id]
                results.append(Refusal(request_id, Status.UNAVAILABLE, "dropped", "No room."))
                continue
            token = self.made[request_id]
            self.made[request_id] += 1
            ended = self.made[request_id] == self.wanted[request_id]
            if ended:
                del self.made[request_id]
            results.append(Update(request_id, array("i", [token]), Finish.LENGTH if ended else Finish.NONE))
        return results


class BridgeEnd:
    """The bridge's side: sends frames, gathers what comes back."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, Finish] = {}
        self.refusals: dict[int, Refusal] = {}
        self.stats: list[Stats] = []
        self.ready: Ready | None = None
        self._reader = FrameReader()

    def submit(self, request_id: int, tokens: list[int], **sampling: Any) -> None:
        sampling.setdefault("max_tokens", 5)
        request = GenerationRequest(request_id, array("i", tokens), Sampling(**sampling))
        self.socket.sendall(protocol.encode_submit(request))

    def receive_until(self, done: Callable[[], Any]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        self.socket.settimeout(0.1)
        while not done():
            assert time.monotonic() < deadline, (self.tokens, self.finish, self.refusals)
            with contextlib.suppress(TimeoutError):
                for kind, payload in self._reader.feed(self.socket.recv(1 << 16)):
                    self._take(kind, payload)

    def _take(self, kind: FrameType, payload: bytes) -> None:
        if kind == FrameType.READY:
            self.ready = protocol.decode_ready(payload)
        elif kind == FrameType.STATS:
            self.stats.append(protocol.decode_stats(payload))
        elif kind == FrameType.REFUSED:
            refusal = protocol.decode_refusal(payload)
            self.refusals[refusal.request_id] = refusal
        else:
            for update in protocol.decode_step(payload):
                self.tokens.setdefault(update.request_id, []).extend(update.tokens)
                self.finish[update.request_id] = update.finish


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def bridge(engine: CountingEngine) -> Iterator[BridgeEnd]:
    """A bridge's end of a server that runs `engine` in a thread until the end of the test."""
    ours, theirs = socket.socketpair()
    connection, inbox = Connection(theirs), Inbox()

    def serve() -> None:
        with contextlib.suppress(ScriptedFailure):
            Server(connection, inbox, engine).serve_forever()

    threading.Thread(target=connection.receive_forever, args=(inbox.put,), daemon=True).start()
    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with ours:
        yield BridgeEnd(ours)
    server.join(TIMEOUT_S)
    assert not server.is_alive()
    theirs.close()


def test_ready_comes_first_and_tokens_follow(bridge: BridgeEnd) -> None:
    bridge.submit(1, [5])
    bridge.submit(2, [6], max_tokens=3)
    bridge.receive_until(lambda: bridge.finish.get(1) and bridge.finish.get(2))
    assert bridge.ready == CountingEngine.ready
    assert bridge.tokens == {1: [0, 1, 2, 3, 4], 2: [0, 1, 2]}


def test_requests_join_in_flight(bridge: BridgeEnd) -> None:
    bridge.submit(1, [5], max_tokens=4000)
    bridge.receive_until(lambda: 1 in bridge.tokens)
    bridge.submit(2, [6])
    bridge.receive_until(lambda: bridge.finish.get(2))
    assert bridge.finish[1] == Finish.NONE


def test_cancel_ends_a_request_and_no_other(bridge: BridgeEnd, engine: CountingEngine) -> None:
    bridge.submit(1, [5], max_tokens=4000)
    bridge.submit(2, [5], max_tokens=4000)
    bridge.receive_until(lambda: bridge.stats and bridge.stats[-1].active == 2)
    bridge.socket.sendall(protocol.encode_cancel(1) + protocol.encode_cancel(77))
    bridge.receive_until(lambda: bridge.stats and bridge.stats[-1].active == 1)
    assert list(engine.made) == [2]


@pytest.mark.parametrize(
    ("tokens", "sampling", "code"),
    [([], {}, "prompt_empty"), ([1000], {}, "token_out_of_range"), ([1], {"top_p": 2.0}, None)],
)
def test_a_bad_request_is_refused_and_hurts_no_other(
    bridge: BridgeEnd, tokens: list[int], sampling: dict[str, Any], code: str | None
) -> None:
    bridge.submit(1, [5], max_tokens=100)
    bridge.submit(2, tokens, **sampling)
    bridge.receive_until(lambda: bridge.finish.get(1) and 2 in bridge.refusals)
    assert bridge.tokens == {1: list(range(100))}
    assert bridge.refusals[2].code == (code or "parameter_out_of_range")
    assert bridge.refusals[2].status == Status.INVALID


def test_an_id_that_is_live_is_refused_and_its_owner_goes_on(bridge: BridgeEnd) -> None:
    bridge.submit(1, [5], max_tokens=200)
    bridge.submit(1, [6], max_tokens=3)
    bridge.receive_until(lambda: bridge.finish.get(1))
    assert bridge.tokens[1] == list(range(200))
    assert bridge.refusals[1].code == "duplicate_id"
    bridge.submit(1, [6], max_tokens=3)
    bridge.receive_until(lambda: len(bridge.tokens[1]) == 203)


def test_what_the_engine_refuses_or_drops_is_reported(bridge: BridgeEnd, engine: CountingEngine) -> None:
    engine.unsubmittable.add(1)
    engine.dropped.add(2)
    for request_id in (1, 2, 3):
        bridge.submit(request_id, [5])
    bridge.receive_until(lambda: bridge.finish.get(3) and len(bridge.refusals) == 2)
    assert bridge.refusals[1] == Refusal(1, Status.UNSUPPORTED, "scripted", "Not this one.")
    assert bridge.refusals[2].code == "dropped"


def test_a_broken_engine_ends_every_request_with_its_reason(
    bridge: BridgeEnd, engine: CountingEngine
) -> None:
    for request_id in (1, 2):
        bridge.submit(request_id, [5], max_tokens=4000)
    bridge.receive_until(lambda: len(bridge.tokens) == 2)
    engine.failure = ScriptedFailure("out of magic")
    bridge.receive_until(lambda: len(bridge.refusals) == 2)
    assert {refusal.status for refusal in bridge.refusals.values()} == {Status.INTERNAL}
    assert "out of magic" in bridge.refusals[1].message


def test_stats_follow_the_work_and_keep_coming(bridge: BridgeEnd) -> None:
    bridge.submit(1, [5], max_tokens=400)
    bridge.receive_until(lambda: bridge.stats and bridge.stats[-1].active == 1)
    bridge.receive_until(lambda: bridge.stats[-1].active == 0 and bridge.stats[-1].generated_tokens == 400)
    assert bridge.stats[-1].steps == 400
    assert max(stats.scheduled for stats in bridge.stats) == 1
    assert bridge.stats[-1].step_age_s == 0.0
    silent_from = len(bridge.stats)
    bridge.receive_until(lambda: len(bridge.stats) > silent_from)
