"""A stop that overtakes its request, in the bridge by itself and through the real tritonserver."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest

from templates.bridge.early_stops import MOST_REMEMBERED, REMEMBER_S, EarlyStops
from tests.worker.triton import Triton, tokens_of, wait_until

LONG = 8000
EARLY = {"stop": True, "stop_may_be_early": True}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_remembered_stop_counts_once() -> None:
    stops = EarlyStops(Clock())
    stops.remember("a")
    assert not stops.take("b")
    assert stops.take("a")
    assert not stops.take("a")


def test_a_stop_is_forgotten_after_a_while() -> None:
    clock = Clock()
    stops = EarlyStops(clock)
    stops.remember("a")
    clock.now += REMEMBER_S
    assert not stops.take("a")


def test_only_so_many_stops_are_remembered() -> None:
    clock = Clock()
    stops = EarlyStops(clock)
    for number in range(MOST_REMEMBERED + 1):
        stops.remember(str(number))
    assert not stops.take("0")
    assert stops.take("1") and stops.take(str(MOST_REMEMBERED))
    clock.now += REMEMBER_S
    stops.remember("new")
    assert len(stops) == 1


@pytest.mark.e2e
def test_an_early_stop_ends_the_request_when_it_comes(triton: Triton) -> None:
    triton.generate("tiny", id="late", **EARLY)
    before = triton.metric("ew_generated_tokens", "tiny")
    assert tokens_of(triton.stream("tiny", id="late", request_output_len=LONG)) == []
    assert triton.active("tiny") == 0
    assert len(tokens_of(triton.stream("tiny", id="late", request_output_len=8))) == 8
    wait_until(lambda: triton.metric("ew_generated_tokens", "tiny") == before + 8, 5.0)


@pytest.mark.e2e
def test_a_plain_stop_of_an_unknown_id_does_nothing_as_in_the_backend_of_nvidia(triton: Triton) -> None:
    triton.generate("tiny", id="reused", stop=True)
    assert len(tokens_of([triton.generate("tiny", id="reused")])) == 8


@pytest.mark.e2e
def test_an_early_stop_of_a_running_request_is_not_remembered(triton: Triton) -> None:
    stream = triton.open_stream("tiny", id="again", request_output_len=LONG)
    next(stream.events())
    triton.generate("tiny", id="again", **EARLY)
    assert len(tokens_of(list(stream.events()))) < LONG
    stream.close()
    assert len(tokens_of([triton.generate("tiny", id="again")])) == 8


@pytest.mark.e2e
def test_a_stop_that_overtakes_a_long_prompt_is_not_lost(triton: Triton) -> None:
    """Both are sent at once: whichever Triton has read first, the request ends long before its tokens are."""
    prompt = [random.randrange(3, 280) for _ in range(4000)]

    def collect(answers: list[Any], body: dict[str, Any]) -> None:
        answers.append(triton.stream("tiny", **body))

    for round_number in range(3):
        name = f"race-{round_number}"
        answers: list[list[dict[str, Any]]] = []
        body = {"id": name, "input_ids": prompt, "request_output_len": 4000}
        run = threading.Thread(target=collect, args=(answers, body))
        run.start()
        time.sleep(0.001 * round_number)
        triton.generate("tiny", id=name, **EARLY)
        run.join()
        assert [len(tokens_of(events)) < 4000 for events in answers] == [True]
    wait_until(lambda: triton.active("tiny") == 0, 5.0)
