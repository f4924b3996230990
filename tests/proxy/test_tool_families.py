"""Tool calls of each family, through the official client: every tool_choice, whole and streamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from tokenizers import AddedToken, Tokenizer

from tests.proxy.stack import MODEL, Stack

TURNS = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}\n{% endfor %}"
)
OFFER = "{% if tools %}{{ tools | tojson }}SIGN\n{% endif %}"


@dataclass(frozen=True)
class Family:
    """What a family's template shows, what its models write, and what a forced answer goes on with.

    `calls` calls get_weather for Paris and then Rome; `one` is the first of them alone; `forced_end` follows
    the beginning that the proxy writes for a named tool.
    """

    name: str
    sign: str
    one: str
    calls: str
    forced_prompt: str
    forced_end: str
    required_prompt: str | None = None
    required_end: str = ""
    special: tuple[str, ...] = ()


HERMES_PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
LLAMA_PARIS = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
MISTRAL_PARIS = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
FAMILIES = (
    Family(
        "qwen",
        "<tool_call>",
        HERMES_PARIS,
        HERMES_PARIS + "\n" + HERMES_PARIS.replace("Paris", "Rome"),
        '<tool_call>\n{"name": "get_weather", "arguments": ',
        '{"city": "Paris"}}\n</tool_call>',
        '<tool_call>\n{"name": "',
        'get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    ),
    Family(
        "llama3",
        "<|python_tag|>",
        LLAMA_PARIS,
        "<|python_tag|>" + LLAMA_PARIS + "; " + LLAMA_PARIS.replace("Paris", "Rome"),
        '{"name": "get_weather", "parameters": ',
        '{"city": "Paris"}}',
        '{"name": "',
        'get_weather", "parameters": {"city": "Paris"}}',
        ("<|python_tag|>",),
    ),
    Family(
        "mistral",
        "[TOOL_CALLS]",
        f"[TOOL_CALLS] [{MISTRAL_PARIS}]",
        f"[TOOL_CALLS] [{MISTRAL_PARIS}, {MISTRAL_PARIS.replace('Paris', 'Rome')}]",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": ',
        '{"city": "Paris"}}]',
        '[TOOL_CALLS] [{"name": "',
        'get_weather", "arguments": {"city": "Paris"}}]',
        ("[TOOL_CALLS]",),
    ),
    Family(
        "mistral-args",
        "[TOOL_CALLS][ARGS]",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}',
        "[TOOL_CALLS]get_weather[ARGS]",
        '{"city": "Paris"}',
        "[TOOL_CALLS]",
        'get_weather[ARGS]{"city": "Paris"}',
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
    Family(
        "glm4", "<|observation|>", 'get_weather\n{"city": "Paris"}', "", "get_weather\n", '{"city": "Paris"}'
    ),
    Family(
        "chatglm3",
        "<|observation|>",
        "get_weather\n ```python\ntool_call(city='Paris')\n```",
        "",
        "get_weather\n",
        "```python\ntool_call(city='Paris')\n```",
    ),
)
PARALLEL = [family for family in FAMILIES if family.calls]
ASK: Any = [{"role": "user", "content": "Weather?"}]
PARIS, ROME = ("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})


def tool(name: str) -> Any:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": "?", "parameters": schema}}


TOOLS = [tool("get_weather"), tool("get_time")]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@dataclass
class Tooled:
    """A stack whose model is of one family."""

    family: Family
    stack: Stack
    client: AsyncOpenAI

    @property
    def prompt(self) -> str:
        """What the engine was asked last, as text."""
        ids = self.stack.triton.requests[-1]["input_ids"]
        tokenizer = self.stack.service.registry.get(MODEL).tokenizer
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    async def whole(self, **fields: Any) -> tuple[str | None, list[Any], str | None]:
        answer = await self.client.chat.completions.create(
            model=MODEL, **{"messages": ASK, "tools": TOOLS, **fields}
        )
        choice: Any = answer.choices[0]
        calls = [read(call) for call in choice.message.tool_calls or ()]
        return choice.message.content, calls, choice.finish_reason

    async def streamed(self, **fields: Any) -> tuple[str | None, list[Any], str | None]:
        text, finish = "", None
        calls: list[Any] = []
        stream: Any = await self.client.chat.completions.create(
            model=MODEL, stream=True, **{"messages": ASK, "tools": TOOLS, **fields}
        )
        async for chunk in stream:
            choice = chunk.choices[0]
            text += choice.delta.content or ""
            calls += choice.delta.tool_calls or []
            finish = choice.finish_reason or finish
        assert [call.index for call in calls] == list(range(len(calls)))
        return text or None, [read(call) for call in calls], finish


def read(call: Any) -> tuple[str, dict[str, Any]]:
    assert call.id.startswith("call_") and call.type == "function"
    return call.function.name, json.loads(call.function.arguments)


def write_family(package: Path, folder: Path, family: Family) -> Path:
    """A copy of the package with the family's template and special tokens."""
    shutil.copytree(package, folder)
    template = OFFER.replace("SIGN", family.sign) + TURNS + "assistant: "
    (folder / "tokenizer" / "chat_template.jinja").write_text(template)
    file = folder / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in family.special])
    tokenizer.save(str(file))
    return folder


@pytest.fixture
async def tooled(
    request: pytest.FixtureRequest, make_stack: Callable[..., Any], package: Path, tmp_path: Path
) -> AsyncIterator[Tooled]:
    family: Family = request.param
    copy = write_family(package, tmp_path / "package", family)
    async with (
        make_stack(package=copy) as stack,
        AsyncOpenAI(base_url=stack.url + "/v1", api_key=stack.key, max_retries=0) as client,
    ):
        yield Tooled(family, stack, client)


each_family = pytest.mark.parametrize("tooled", FAMILIES, ids=lambda family: family.name, indirect=True)
each_parallel = pytest.mark.parametrize("tooled", PARALLEL, ids=lambda family: family.name, indirect=True)


@each_family
async def test_auto_takes_the_call_that_the_model_writes(tooled: Tooled) -> None:
    tooled.stack.script(tooled.family.one)
    for choice in ({}, {"tool_choice": "auto"}):
        expected = (None, [PARIS], "tool_calls")
        assert await tooled.whole(**choice) == await tooled.streamed(**choice) == expected
        assert "get_time" in tooled.prompt


@each_family
async def test_auto_leaves_a_plain_answer_alone(tooled: Tooled) -> None:
    tooled.stack.script("It is sunny in Paris.\nTake a hat.")
    expected: Any = ("It is sunny in Paris.\nTake a hat.", [], "stop")
    assert await tooled.whole() == await tooled.streamed() == expected


@each_family
async def test_none_offers_no_tools_and_reads_no_calls(tooled: Tooled) -> None:
    tooled.stack.script("It is sunny.")
    expected: Any = ("It is sunny.", [], "stop")
    assert await tooled.whole(tool_choice="none") == await tooled.streamed(tool_choice="none") == expected
    assert "get_weather" not in tooled.prompt


@each_family
async def test_a_named_tool_is_forced(tooled: Tooled) -> None:
    tooled.stack.script(tooled.family.forced_end)
    expected = (None, [PARIS], "tool_calls")
    assert await tooled.whole(tool_choice=NAMED) == await tooled.streamed(tool_choice=NAMED) == expected
    assert tooled.prompt.endswith("assistant: " + tooled.family.forced_prompt)


@each_family
async def test_required_with_one_tool_forces_it(tooled: Tooled) -> None:
    tooled.stack.script(tooled.family.forced_end)
    fields = {"tool_choice": "required", "tools": TOOLS[:1]}
    assert await tooled.whole(**fields) == await tooled.streamed(**fields) == (None, [PARIS], "tool_calls")


@each_family
async def test_required_with_several_tools_forces_some_call_or_says_why_not(tooled: Tooled) -> None:
    tooled.stack.script(tooled.family.required_end)
    if tooled.family.required_prompt is None:
        with pytest.raises(openai.BadRequestError, match="name one of them"):
            await tooled.whole(tool_choice="required")
        return
    expected = (None, [PARIS], "tool_calls")
    assert await tooled.whole(tool_choice="required") == expected
    assert await tooled.streamed(tool_choice="required") == expected
    assert tooled.prompt.endswith("assistant: " + tooled.family.required_prompt)


@each_parallel
async def test_several_calls_and_only_one_where_the_client_wants_one(tooled: Tooled) -> None:
    tooled.stack.script(tooled.family.calls)
    assert await tooled.whole() == await tooled.streamed() == (None, [PARIS, ROME], "tool_calls")
    one = {"parallel_tool_calls": False}
    assert await tooled.whole(**one) == await tooled.streamed(**one) == (None, [PARIS], "tool_calls")


@each_family
async def test_results_of_tools_go_back_into_the_prompt(tooled: Tooled) -> None:
    tooled.stack.script("Sunny.")
    call = {"id": "call_1", "type": "function"}
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [{**call, "function": function}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "25 degrees"},
    ]
    assert await tooled.whole(messages=messages) == ("Sunny.", [], "stop")
    assert '"city": "Paris"' in tooled.prompt and "tool: 25 degrees" in tooled.prompt


@each_family
async def test_a_call_cut_by_the_limit_is_text(tooled: Tooled) -> None:
    ids = tooled.stack.script(tooled.family.one)
    text, calls, finish = await tooled.whole(max_completion_tokens=len(ids) - 5)
    assert (calls, finish) == ([], "length")
    assert text and tooled.family.one.startswith(text)
    assert await tooled.streamed(max_completion_tokens=len(ids) - 5) == (text, calls, finish)


@each_family
async def test_a_name_that_is_no_tool_is_refused_by_name(tooled: Tooled) -> None:
    wrong: Any = {"type": "function", "function": {"name": "get_wether"}}
    with pytest.raises(openai.BadRequestError, match="get_wether"):
        await tooled.whole(tool_choice=wrong)
