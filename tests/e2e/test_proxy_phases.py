"""The engine's work stops in each of the five phases, whoever ends a request and however it was asked."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.phased_stack import PHASES, PLAIN, STREAM, Phase, PhasedStack, phased_stack, read_until

pytestmark = pytest.mark.e2e

# benchmarks/cancellation.py measures (and docs/performance.md states) the median. A phase here lasts a
# minute, so that a request that were not stopped would be far from this bound.
BOUND_SECONDS = 5.0
NAMES = [phase.name for phase in PHASES]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PhasedStack]:
    with phased_stack(tmp_path_factory.mktemp("phased")) as stack:
        yield stack


@pytest.fixture
def stack(running: PhasedStack) -> Iterator[PhasedStack]:
    yield running
    running.close_all()


@pytest.mark.parametrize("path", [STREAM, PLAIN])
@pytest.mark.parametrize("phase", PHASES, ids=NAMES)
def test_a_client_that_leaves(stack: PhasedStack, phase: Phase, path: str) -> None:
    before = stack.cancellations("client_gone")
    connection, request = stack.enter(phase, path)
    left = time.monotonic()
    connection.close()
    assert stack.cancelled_at(request) - left < BOUND_SECONDS
    while stack.cancellations("client_gone") < before + 1:
        assert time.monotonic() - left < BOUND_SECONDS
        time.sleep(0.01)


@pytest.mark.parametrize("path", [STREAM, PLAIN])
@pytest.mark.parametrize("phase", PHASES, ids=NAMES)
def test_a_timeout(stack: PhasedStack, phase: Phase, path: str) -> None:
    before = stack.cancellations("timeout")
    began = time.monotonic()
    connection, request = stack.enter(phase, path, timeoutMs=1000)
    stopped = stack.cancelled_at(request)
    assert 1.0 <= stopped - began < 1.0 + BOUND_SECONDS
    assert "[DONE]" not in read_until(connection, '"timeout"')
    assert stack.cancellations("timeout") == before + 1


@pytest.mark.parametrize("path", [STREAM, PLAIN])
def test_the_openai_routes_stop_every_choice(stack: PhasedStack, path: str) -> None:
    body = {"model": "m", "prompt": "hi", "max_tokens": 1003, "n": 3, "stream": path == STREAM}
    connection = stack.post("/v1/completions", body)
    while len(stack.running()) < 3:
        time.sleep(0.01)
    connection.close()
    left = time.monotonic()
    while stack.running():
        assert time.monotonic() - left < BOUND_SECONDS
        time.sleep(0.01)


@pytest.mark.parametrize("milliseconds", [0, 2, 5, 10, 20, 40])
def test_a_long_prompt_that_its_stop_overtakes(stack: PhasedStack, milliseconds: int) -> None:
    """Nothing is written for a minute here, so only the stop can end it: a lost one would be seen."""
    prompt = "".join(chr(0x4E00 + number) for number in range(1200))
    connection = stack.send(STREAM, 1001, prompt=prompt)
    time.sleep(milliseconds / 1000)
    connection.close()
    time.sleep(0.5)
    left = time.monotonic()
    while stack.running():
        assert time.monotonic() - left < BOUND_SECONDS
        time.sleep(0.01)


def test_requests_around_a_cancelled_one_are_whole(stack: PhasedStack) -> None:
    leaving, request = stack.enter(PHASES[3], STREAM)
    staying = stack.send(PLAIN, 50)
    leaving.close()
    stack.cancelled_at(request)
    assert '"finishReason":"length"' in read_until(staying, '"completionTokens":50')


def test_a_drain_ends_the_work_of_all_phases(tmp_path: Path) -> None:
    """SIGTERM to the proxy with a request in each phase."""
    with phased_stack(tmp_path, "--drain=0.5") as stack:
        requests = [stack.enter(phase, STREAM) for phase in PHASES[1:]]
        requests.append(stack.enter(PHASES[0], STREAM))
        told = time.monotonic()
        stack.proxy.send_signal(signal.SIGTERM)
        for connection, request in requests:
            assert stack.cancelled_at(request) - told < 0.5 + BOUND_SECONDS
            assert "[DONE]" not in read_until(connection, '"draining"')
        stack.proxy.wait(30)
