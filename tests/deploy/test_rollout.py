"""A copy of the service is replaced under load: no request is lost, and streams have their whole grace.

The full version is `python -m benchmarks.rollout --requests 2000`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.rollout import Plan, had_its_grace, run
from benchmarks.rollout_copies import Ending, Mode
from benchmarks.rollout_load import Outcome
from common.paths import home
from tests.deploy.tools import tool
from tests.e2e.conftest import prepared_model as prepared_model

# Shorter than a cluster's, so that the test is; the order is the same.
ENDING = Ending(endpoint_delay=0.5, pre_stop=1.0, drain=4.0, lame_duck=2.0, grace=60.0)
# A request that an open connection brings after SIGTERM has only the rest of the drain.
ENDINGS: dict[Mode, Ending] = {"http": ENDING, "tcp": replace(ENDING, drain=14.0)}
SIGTERM = {"a": 100.0}


@pytest.mark.e2e
@pytest.mark.timeout(600)  # half a minute, but every process of two services shares the machine
@pytest.mark.parametrize("mode", ["http", pytest.param("tcp", marks=pytest.mark.slow)])
def test_no_request_is_lost_when_a_copy_is_replaced(mode: Mode, prepared_model: str, tmp_path: Path) -> None:
    tool("haproxy", "haproxy")
    plan = Plan(80, 4, ENDINGS[mode], shares=(0.2,), mode=mode)
    found = run(plan, home().models / prepared_model, tmp_path)
    assert (found["lost"], found["lost_by_reason"], found["faults"]) == (0, {}, [])
    assert found["requests"] >= 80
    assert found["whole"] + found["ended_after_their_full_grace"] == found["requests"]
    # A balancer of connections cannot name the copy; the streams held on the one that went are known.
    assert set(found["served_by"]) == ({"a", "b"} if mode == "http" else {"", "a"})


@pytest.mark.parametrize(
    ("problem", "ended", "copy", "expected"),
    [
        ("a stream without an end: draining", 104.0, "a", True),
        ("a stream without an end: draining", 103.0, "a", False),  # cut too early
        ("a stream without an end: draining", 104.0, "b", False),  # b was not asked to end
        ("status 503: draining", 101.0, "a", False),  # it came although the endpoint was gone
        ("a stream without an end: engine", 104.0, "a", False),
        ("ServerDisconnectedError in the middle", 104.0, "a", False),
        ("", 104.0, "a", False),
    ],
)
def test_only_a_stream_that_used_up_its_grace_is_excused(
    problem: str, ended: float, copy: str, expected: bool
) -> None:
    assert had_its_grace(Outcome(copy, 90.0, ended=ended, problem=problem), SIGTERM, ENDING.drain) is expected
