"""Tool calls of each family: whole, streamed in any cut, and text that only looks like a call."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.openai_api.tools import GLM, HERMES, LLAMA, MISTRAL, CallWatch, ToolFormat, split

NAMES = frozenset({"get_weather", "add"})
CALLS: list[tuple[ToolFormat, str, str, list[tuple[str, dict[str, object]]]]] = [
    (
        HERMES,
        'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>',
        "Let me look.\n",
        [("get_weather", {"city": "北京"})],
    ),
    (
        HERMES,
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>',
        "",
        [("add", {"a": 1}), ("add", {"a": 2})],
    ),
    (MISTRAL, '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]', "", [("add", {"a": 1})]),
    (LLAMA, '{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
    (LLAMA, '<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
    (GLM, 'get_weather\n{"city": "北京"}', "", [("get_weather", {"city": "北京"})]),
    (HERMES, "No call < here <tool", "No call < here <tool", []),
    (LLAMA, '{"just": "json"}', '{"just": "json"}', []),
    (GLM, "Hello there, friend.", "Hello there, friend.", []),
    (HERMES, '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>', "<tool_call>", []),
]


@pytest.mark.parametrize("form, text, says, calls", CALLS)
def test_split(form: ToolFormat, text: str, says: str, calls: list[tuple[str, dict[str, object]]]) -> None:
    said, found = split(form, text, NAMES)
    assert said.startswith(says)
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


@settings(max_examples=50, deadline=None)
@given(case=st.sampled_from(CALLS), cuts=st.lists(st.integers(1, 6), min_size=1))
def test_streamed_in_any_cut_it_is_the_same(
    case: tuple[ToolFormat, str, str, list[tuple[str, dict[str, object]]]], cuts: list[int]
) -> None:
    form, text, _, _ = case
    watch = CallWatch(form, NAMES, "")
    said, at, index = "", 0, 0
    while at < len(text):
        size = cuts[index % len(cuts)]
        said += watch.push(text[at : at + size])
        at, index = at + size, index + 1
    rest, calls = watch.rest()
    whole_said, whole_calls = split(form, text, NAMES)
    assert said + rest == whole_said
    assert calls == whole_calls


def test_a_forced_call_continues_the_prompt() -> None:
    prefix = HERMES.opening.replace("{name}", "add")
    watch = CallWatch(HERMES, NAMES, prefix)
    assert watch.push('{"a": 1}}\n</tool_call>') == ""
    said, calls = watch.rest()
    assert said == ""
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("add", {"a": 1})]
