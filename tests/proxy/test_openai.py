"""The official client against the OpenAI API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.proxy.stack import MODEL, Stack

TEXT = "Hello, 你好 👋 world"
USER: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=stack.url + "/v1", api_key=stack.key, max_retries=0) as made:
        yield made


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).owned_by == "ew"


async def test_chat(stack: Stack, client: AsyncOpenAI) -> None:
    ids = stack.script(TEXT)
    answer = await client.chat.completions.create(model=MODEL, messages=USER)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (TEXT, "stop")
    assert answer.usage is not None and answer.usage.completion_tokens == len(ids)


async def test_chat_stream_with_usage(stack: Stack, client: AsyncOpenAI) -> None:
    ids = stack.script(TEXT)
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}
        )
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == len(ids)


async def test_finish_reason_length(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script(TEXT)
    answer = await client.chat.completions.create(model=MODEL, messages=USER, max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert stack.triton.requests[0]["request_output_len"] == 2


async def test_stop_and_seed(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script(TEXT)
    answer = await client.chat.completions.create(
        model=MODEL, messages=USER, stop=["你好"], seed=7, temperature=0.5
    )
    assert answer.choices[0].message.content == "Hello, "
    assert stack.triton.requests[0]["seed"] == 7


async def test_n_choices(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script(TEXT)
    answer = await client.chat.completions.create(model=MODEL, messages=USER, n=3, seed=1, temperature=1)
    assert [choice.message.content for choice in answer.choices] == [TEXT] * 3
    assert {request["seed"] for request in stack.triton.requests} == {1, 2, 3}


async def test_n_choices_streamed(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script(TEXT)
    texts = ["", "", ""]
    finished = []
    async for chunk in await client.chat.completions.create(model=MODEL, messages=USER, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finished += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [TEXT] * 3
    assert finished == ["stop"] * 3


async def test_logprobs(stack: Stack, client: AsyncOpenAI) -> None:
    ids = stack.script("abc", log_prob=-0.5)
    answer = await client.chat.completions.create(model=MODEL, messages=USER, logprobs=True)
    probabilities = answer.choices[0].logprobs
    assert probabilities is not None and probabilities.content is not None
    assert len(probabilities.content) == len(ids)
    assert "".join(entry.token for entry in probabilities.content) == "abc"
    assert {entry.logprob for entry in probabilities.content} == {-0.5}


async def test_logit_bias_becomes_the_engines_bias(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script("a")
    await client.chat.completions.create(model=MODEL, messages=USER, logit_bias={"5": -100})
    bias = stack.triton.requests[0]["embedding_bias"]
    assert len(bias) == stack.service.registry.get(MODEL).tokenizer.get_vocab_size()
    assert (bias[5], sum(bias)) == (-100, -100)


async def test_response_format_becomes_a_guide(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script("{}")
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    await client.chat.completions.create(model=MODEL, messages=USER, response_format=schema)
    request = stack.triton.requests[0]
    assert request["guided_decoding_guide_type"] == "json_schema"
    assert json.loads(request["guided_decoding_guide"]) == {"type": "object"}


async def test_an_engine_without_guided_decoding_is_a_clear_400(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script("", status=501, error="this engine does not support guided decoding")
    with pytest.raises(openai.BadRequestError, match="guided decoding"):
        await client.chat.completions.create(
            model=MODEL, messages=USER, response_format={"type": "json_object"}
        )


async def test_logprobs_of_completions(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script("abc def", log_prob=-0.5)
    fields: Any = {"model": MODEL, "prompt": "say", "max_tokens": 100, "logprobs": 0}
    whole = (await client.completions.create(**fields)).choices[0]
    assert whole.logprobs is not None and whole.logprobs.tokens and whole.logprobs.text_offset
    for token, offset in zip(whole.logprobs.tokens, whole.logprobs.text_offset, strict=True):
        assert whole.text[offset:].startswith(token)
    streamed: Any = [chunk async for chunk in await client.completions.create(stream=True, **fields)]
    for name in ("tokens", "token_logprobs", "text_offset"):
        parts = (getattr(chunk.choices[0].logprobs, name) for chunk in streamed if chunk.choices[0].logprobs)
        assert [entry for part in parts for entry in part] == getattr(whole.logprobs, name)


async def test_completions(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script(TEXT)
    answer = await client.completions.create(model=MODEL, prompt="say", max_tokens=100, echo=True)
    assert answer.choices[0].text == "say" + TEXT
    chunks = [
        chunk.choices[0].text
        async for chunk in await client.completions.create(
            model=MODEL, prompt="say", max_tokens=100, stream=True
        )
    ]
    assert "".join(chunks) == TEXT


async def test_completions_of_several_prompts(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script(TEXT)
    answer = await client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=50, n=2)
    assert [choice.text for choice in answer.choices] == [TEXT] * 4
    assert answer.usage is not None and answer.usage.prompt_tokens == 2
    answer = await client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=50)
    assert stack.triton.requests[-1]["input_ids"] == [5, 6]


async def test_errors_have_the_clients_types(stack: Stack, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="x", messages=USER)
    with pytest.raises(openai.BadRequestError, match="tempratur"):
        await client.chat.completions.create(model=MODEL, messages=USER, extra_body={"tempratur": 1})
    with pytest.raises(openai.BadRequestError, match="tools"):
        tool: Any = {"type": "function", "function": {"name": "f"}}
        await client.chat.completions.create(model=MODEL, messages=USER, tools=[tool])
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.retrieve(MODEL)


@pytest.mark.parametrize("n", [1, 3])
async def test_a_long_prefill_commits_the_status_after_a_while(
    make_stack: Callable[..., Any], n: int
) -> None:
    body = {"model": MODEL, "messages": USER, "stream": True, "n": n}
    async with make_stack(header_hold=0.1) as stack:
        stack.script(TEXT, prefill=0.5, fail_after=0)
        status, _, data = await stack.post("/v1/chat/completions", body)
        assert (status, json.loads(data.removeprefix(b"data: "))["error"]["code"]) == (200, "engine")
        stack.script(TEXT, prefill=0.3, fail_after=None)
        status, _, data = await stack.post("/v1/chat/completions", body)
        assert (status, data.count(b'"finish_reason":"stop"')) == (200, n)
        assert data.endswith(b"data: [DONE]\n\n")


async def test_an_error_mid_stream_raises(stack: Stack, client: AsyncOpenAI) -> None:
    stack.script(TEXT, fail_after=2, pace=0.01)
    with pytest.raises(openai.APIError, match="engine"):
        async for _ in await client.chat.completions.create(model=MODEL, messages=USER, stream=True):
            pass


@pytest.mark.parametrize("role", ["user", "system", "tool"])
async def test_only_an_assistant_may_say_nothing(stack: Stack, client: AsyncOpenAI, role: str) -> None:
    silent: Any = [*USER, {"role": role, "content": None}]
    with pytest.raises(openai.BadRequestError, match=f"a message of the {role} needs content"):
        await client.chat.completions.create(model=MODEL, messages=silent)
    stack.script(TEXT)
    silent[1]["role"] = "assistant"
    answer = await client.chat.completions.create(model=MODEL, messages=silent)
    assert answer.choices[0].message.content == TEXT


async def test_a_body_that_is_no_object(stack: Stack, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"found \[1\]; a JSON object is needed"):
        await client.post("/chat/completions", cast_to=object, body=[1])
