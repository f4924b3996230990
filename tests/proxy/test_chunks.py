"""Both chunk styles give the same tokens, and no delta answer is taken for a cumulative one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.chunks import Deltas, StreamTraits, Style
from tests.proxy.stack import MODEL, Stack, parse_events, text_of

TEXT = "ha ha ha ha, 你好 👋 world"
# Two letters only, so that answers repeat themselves.
GROUPS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=3), min_size=1, max_size=8)
STYLES: tuple[Style, ...] = ("delta", "cumulative")


def run(traits: StreamTraits, chunks: list[list[int]]) -> tuple[list[int], list[float]]:
    """All that comes out; the log probability of a token is its position."""
    deltas = Deltas(traits)
    parts = [deltas.push(chunk, values) for chunk, values in zip(chunks, positions(chunks), strict=True)]
    parts.append(deltas.rest())
    return [token for ids, _ in parts for token in ids], [value for _, values in parts for value in values]


def positions(chunks: list[list[int]]) -> list[list[float]]:
    """Per chunk the positions of its tokens in the answer, whichever style they are in."""
    made, start = [], 0
    for chunk in chunks:
        made.append([float(start + index) for index in range(len(chunk))])
        start += len(chunk)
    return made


def cumulative(groups: list[list[int]]) -> list[list[int]]:
    return [[token for group in groups[: end + 1] for token in group] for end in range(len(groups))]


@given(GROUPS)
def test_known_deltas_pass_as_they_are(groups: list[list[int]]) -> None:
    flat = [token for group in groups for token in group]
    assert run(StreamTraits(True, "delta"), groups) == (flat, [float(at) for at in range(len(flat))])


@given(GROUPS)
def test_cumulative_chunks_become_deltas_whether_known_or_not(groups: list[list[int]]) -> None:
    flat = [token for group in groups for token in group]
    for style in ("cumulative", None):
        assert run(StreamTraits(True, style), cumulative(groups))[0] == flat


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30))
def test_single_tokens_of_an_unknown_engine_are_deltas(tokens: list[int]) -> None:
    traits = StreamTraits(True)
    ids, log_probs = run(traits, [[token] for token in tokens])
    assert (ids, log_probs) == (tokens, [float(at) for at in range(len(tokens))])
    assert traits.style == ("delta" if len(tokens) > 1 else None)


@given(GROUPS)
def test_deltas_of_an_unknown_engine_are_whole(groups: list[list[int]]) -> None:
    """But for answers whose first chunks each begin with the whole one before: those look cumulative."""
    pairs = list(zip(groups[:3], groups[1:3], strict=False))
    assume(not pairs or not all(len(b) > len(a) and b[: len(a)] == a for a, b in pairs))
    assert run(StreamTraits(True), groups)[0] == [token for group in groups for token in group]


def test_a_stream_that_began_before_the_style_was_known_loses_nothing() -> None:
    traits = StreamTraits(True)
    early, late = Deltas(traits), Deltas(traits)
    assert early.push([1], [])[0] == [1]
    assert early.push([1, 2], [])[0] == []
    late.push([5], [])
    late.push([6], [])
    assert traits.style == "delta"
    assert early.push([3], [])[0] == [1, 2, 3]


def test_a_cumulative_engine_may_repeat_its_last_chunk_or_end_with_none() -> None:
    traits = StreamTraits(True, "cumulative")
    assert run(traits, [[1], [1, 2], [1, 2], []])[0] == [1, 2]
    assert traits.style == "cumulative"


@pytest.mark.parametrize("cumulative", [False, True], ids=STYLES)
async def test_both_styles_are_the_same_to_a_client(stack: Stack, cumulative: bool) -> None:
    ids = stack.script(TEXT, backend="python", cumulative=cumulative, log_prob=-0.5, pace=0.001)
    for _ in range(2):
        events = await stack.events(logprobs=True)
        assert (text_of(events), events[-1]) == (TEXT, "[DONE]")
        assert events[-2]["usage"]["completionTokens"] == len(ids) == len(events[-2]["logprobs"])
        assert "streamMode" not in events[-2]


async def test_everything_at_once_is_labelled(stack: Stack) -> None:
    """A model that says it streams, and then sends the answer in one piece."""
    stack.script(TEXT, backend="python", group=1000)
    body = {"modelId": MODEL, "prompt": "hi"}
    _, headers, data = await stack.post("/api/v1/inference/stream", body)
    events = parse_events(data)
    assert headers["X-Stream-Mode"] == "pseudo"
    assert [event["text"] for event in events[:-2]] == list(TEXT)
    assert events[-2]["streamMode"] == "pseudo"
    _, _, data = await stack.post("/api/v1/inference", body)
    assert (json.loads(data)["text"], json.loads(data)["streamMode"]) == (TEXT, "pseudo")


@pytest.mark.parametrize("n", [1, 2])
async def test_the_openai_routes_label_it_too(make_stack: Callable[..., Any], n: int) -> None:
    async with make_stack() as stack:
        stack.script(TEXT, backend="python", group=1000)
        body = {"model": MODEL, "prompt": "hi", "max_tokens": 100, "stream": True, "n": n}
        _, headers, data = await stack.post("/v1/completions", body)
        assert headers["X-Stream-Mode"] == "pseudo"
        assert data.endswith(b"data: [DONE]\n\n")
