"""Tool calls of each family: whole, streamed in any cut, and text that only looks like a call."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from proxy.openai_api.tools import GLM, HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, CallWatch, ToolFormat, split
from tests.proxy.stack import MODEL, Stack

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
    (
        MISTRAL_ARGS,
        '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]add[CALL_ID]x9[ARGS]{"a": 2}',
        "",
        [("add", {"a": 1}), ("add", {"a": 2})],
    ),
    (LLAMA, '{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
    (LLAMA, '<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
    (GLM, 'get_weather\n{"city": "北京"}', "", [("get_weather", {"city": "北京"})]),
    (GLM, "get_weather\n ```python\ntool_call(city='北京')\n```", "", [("get_weather", {"city": "北京"})]),
    (GLM, "add\n```python\n__import__('os').system('true')\n```", "add\n```python", []),
    (GLM, "Yes\nof course.", "Yes\nof course.", []),
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


TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }} Answer with <tool_call>.\n{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "
)
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
ASK: Any = [{"role": "user", "content": "Weather?"}]
CALL_TEXT = 'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
async def tooled(
    make_stack: Callable[..., Any], package: Path, tmp_path: Path
) -> AsyncIterator[tuple[Stack, AsyncOpenAI]]:
    """The stack with a chat template that knows tools, and the official client."""
    copy = tmp_path / "package"
    shutil.copytree(package, copy)
    (copy / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    async with (
        make_stack(package=copy) as stack,
        AsyncOpenAI(base_url=stack.url + "/v1", api_key=stack.key, max_retries=0) as client,
    ):
        yield stack, client


async def test_a_call_through_the_official_client(tooled: tuple[Stack, AsyncOpenAI]) -> None:
    stack, client = tooled
    stack.script(CALL_TEXT)
    answer = await client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look.\n"
    assert choice.message.tool_calls is not None
    call: Any = choice.message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    prompt = stack.triton.requests[0]["input_ids"]
    assert "get_weather" in stack.service.registry.get(MODEL).tokenizer.decode(prompt)


async def test_a_call_streamed_through_the_official_client(tooled: tuple[Stack, AsyncOpenAI]) -> None:
    stack, client = tooled
    stack.script(CALL_TEXT)
    text, calls, finish = "", [], None
    async for chunk in await client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER], stream=True
    ):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        calls += delta.tool_calls or []
        finish = chunk.choices[0].finish_reason or finish
    assert (text, finish) == ("Let me look.\n", "tool_calls")
    function = calls[0].function
    assert function is not None and function.arguments is not None
    assert (function.name, json.loads(function.arguments)) == ("get_weather", {"city": "Paris"})


async def test_a_named_tool_is_forced_by_the_beginning_of_the_answer(
    tooled: tuple[Stack, AsyncOpenAI],
) -> None:
    stack, client = tooled
    stack.script('{"city": "Rome"}}\n</tool_call>')
    wanted: Any = {"type": "function", "function": {"name": "get_weather"}}
    answer = await client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER], tool_choice=wanted
    )
    calls: Any = answer.choices[0].message.tool_calls
    assert json.loads(calls[0].function.arguments) == {"city": "Rome"}
    prompt = stack.service.registry.get(MODEL).tokenizer.decode(stack.triton.requests[0]["input_ids"])
    assert prompt.endswith('<tool_call>\n{"name": "get_weather", "arguments": ')


async def test_no_tools_with_tool_choice_none(tooled: tuple[Stack, AsyncOpenAI]) -> None:
    stack, client = tooled
    stack.script(CALL_TEXT)
    answer = await client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER], tool_choice="none"
    )
    assert answer.choices[0].message.content == CALL_TEXT
    assert answer.choices[0].finish_reason == "stop"
