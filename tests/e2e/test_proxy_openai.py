"""The official client against the running demo model: each feature of the OpenAI API, on the real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests
from openai import OpenAI
from tokenizers import Tokenizer

from common.paths import SOURCE_ROOT
from tests.e2e.conftest import RunningService

pytestmark = pytest.mark.e2e
CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]
CITY_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key=service.api_key, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(service: RunningService) -> Tokenizer:
    return Tokenizer.from_file(str(SOURCE_ROOT / "models" / service.model / "tokenizer" / "tokenizer.json"))


def ask(client: OpenAI, service: RunningService, **fields: Any) -> Any:
    """The one choice of a greedy chat answer."""
    wanted = {"messages": CAPITAL, "temperature": 0, "max_completion_tokens": 24, **fields}
    return client.chat.completions.create(model=service.model, **wanted).choices[0]


def test_models(client: OpenAI, service: RunningService) -> None:
    assert [model.id for model in client.models.list()] == [service.model]
    assert client.models.retrieve(service.model).id == service.model


def test_chat_whole_and_streamed_with_usage(client: OpenAI, service: RunningService) -> None:
    fields: Any = {"model": service.model, "messages": CAPITAL, "temperature": 0}
    whole = client.chat.completions.create(**fields)
    chunks = list(
        client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **fields)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == text
    assert "Paris" in text
    assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == "stop"
    assert whole.usage == chunks[-1].usage
    assert whole.usage is not None and whole.usage.completion_tokens > 3


def test_completions_and_stop(client: OpenAI, service: RunningService) -> None:
    fields: Any = {"model": service.model, "prompt": "1, 2, 3, 4,", "temperature": 0, "max_tokens": 40}
    answer = client.completions.create(stop=["9"], **fields).choices[0]
    assert (answer.finish_reason, "9" in answer.text, "8" in answer.text) == ("stop", False, True)
    streamed = client.completions.create(stream=True, stop=["9"], **fields)
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.text
    echoed = client.completions.create(echo=True, **{**fields, "max_tokens": 1}).choices[0]
    assert echoed.text.startswith("1, 2, 3, 4,") and echoed.finish_reason == "length"


def test_length_is_told_apart_from_stop(client: OpenAI, service: RunningService) -> None:
    assert ask(client, service, max_completion_tokens=3).finish_reason == "length"
    assert ask(client, service, max_completion_tokens=100).finish_reason == "stop"


def test_logprobs_of_the_chosen_tokens(client: OpenAI, service: RunningService) -> None:
    choice = ask(client, service, logprobs=True)
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content
    assert all(-20 < entry.logprob <= 0 for entry in entries)
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        ask(client, service, logprobs=True, top_logprobs=2)


def test_n_and_seed(client: OpenAI, service: RunningService) -> None:
    fields: Any = {
        "model": service.model,
        "messages": [{"role": "user", "content": "Tell me a short story."}],
        "max_completion_tokens": 16,
        "temperature": 1.0,
        "n": 3,
    }
    first = [choice.message.content for choice in client.chat.completions.create(seed=5, **fields).choices]
    again = [choice.message.content for choice in client.chat.completions.create(seed=5, **fields).choices]
    other = [choice.message.content for choice in client.chat.completions.create(seed=6000, **fields).choices]
    assert first == again != other
    assert len(set(first)) == 3


def test_logit_bias_forbids_and_forces_tokens(
    client: OpenAI, service: RunningService, tokenizer: Tokenizer
) -> None:
    plain = ask(client, service).message.content
    paris = tokenizer.encode(" Paris", add_special_tokens=False).ids
    forbidden = ask(client, service, logit_bias={str(paris[0]): -100}).message.content
    assert "Paris" in plain and " Paris" not in forbidden
    yes = tokenizer.encode("yes", add_special_tokens=False).ids[0]
    forced = ask(client, service, logit_bias={str(yes): 100}, max_completion_tokens=3)
    assert forced.message.content == "yes" * 3
    with pytest.raises(openai.BadRequestError, match="logit_bias: found token '999999999'"):
        ask(client, service, logit_bias={"999999999": -100})


def test_response_format_json_object(client: OpenAI, service: RunningService) -> None:
    question: Any = [{"role": "user", "content": "Give me JSON about France with the key capital."}]
    choice = ask(
        client,
        service,
        messages=question,
        response_format={"type": "json_object"},
        max_completion_tokens=200,
    )
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    assert choice.message.content.lstrip().startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_response_format_json_schema(client: OpenAI, service: RunningService, stream: bool) -> None:
    schema = {"name": "city", "schema": CITY_SCHEMA, "strict": True}
    fields: Any = {
        "model": service.model,
        "messages": CAPITAL,
        "temperature": 0,
        "max_completion_tokens": 100,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    if stream:
        chunks = client.chat.completions.create(stream=True, **fields)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = client.chat.completions.create(**fields).choices[0].message.content or ""
    city = json.loads(text)
    assert set(city) == {"city", "large"} and isinstance(city["large"], bool)


def test_the_documented_api_guides_too(service: RunningService) -> None:
    body = {
        "modelId": service.model,
        "prompt": "Pick a colour.",
        "maxTokens": 10,
        "guided": {"regex": "(red|green|blue)"},
    }
    url = f"{service.url}/api/v1/inference"
    answer = requests.post(url, json=body, headers=service.headers, timeout=60).json()
    assert answer["text"] in ("red", "green", "blue"), answer
    assert answer["finishReason"] == "stop"


def test_tools_without_a_template_for_them_are_a_clear_400(client: OpenAI, service: RunningService) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="knows no tools"):
        ask(client, service, tools=[tool])


def test_errors_have_the_clients_types(client: OpenAI, service: RunningService) -> None:
    with pytest.raises(openai.NotFoundError, match="nothing"):
        client.chat.completions.create(model="nothing", messages=CAPITAL)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="guided_decoding|schema"):
        schema = {"name": "x", "schema": {"type": "nonsense"}}
        ask(client, service, response_format={"type": "json_schema", "json_schema": schema})
