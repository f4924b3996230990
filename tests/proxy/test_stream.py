"""The documented call, through real sockets, against a scripted engine."""

from __future__ import annotations

import json

from tests.proxy.stack import MODEL, Stack, text_of

TEXT = "Hello, 你好 👋🌍 world"


async def test_events_receipt_and_done(stack: Stack) -> None:
    ids = stack.script(TEXT)
    events = await stack.events()
    assert events[-1] == "[DONE]"
    assert text_of(events) == TEXT
    assert set(events[0]) == {"id", "modelId", "text"}
    receipt = events[-2]
    assert receipt["finishReason"] == "stop"
    assert receipt["usage"]["completionTokens"] == len(ids)
    assert receipt["usage"]["totalTokens"] == receipt["usage"]["promptTokens"] + len(ids)
    assert receipt["timings"]["ttftMs"] > 0


async def test_response_headers(stack: Stack) -> None:
    stack.script(TEXT)
    body = {"modelId": MODEL, "prompt": "hi"}
    status, headers, _ = await stack.post("/api/v1/inference/stream", body, **{"X-Request-Id": "abc-1"})
    assert status == 200
    assert headers["X-Request-Id"] == "abc-1"
    assert headers["X-Response-Time"].endswith("ms")
    assert headers["Content-Type"].startswith("text/event-stream")


async def test_plain_answer_equals_the_stream(stack: Stack) -> None:
    stack.script(TEXT, group=3)
    events = await stack.events()
    status, _, data = await stack.post("/api/v1/inference", {"modelId": MODEL, "prompt": "hi"})
    assert status == 200
    assert json.loads(data)["text"] == text_of(events) == TEXT


async def test_a_prompt_is_a_chat_turn_unless_raw(stack: Stack) -> None:
    stack.script("x")
    await stack.events(prompt="你好")
    await stack.events(prompt="你好", raw=True)
    tokenizer = stack.service.registry.get(MODEL).tokenizer
    chat, raw = (request["input_ids"] for request in stack.triton.requests)
    assert tokenizer.decode(chat, skip_special_tokens=False) == (
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(raw, skip_special_tokens=False) == "你好"


async def test_engine_request_is_greedy_with_all_end_ids(stack: Stack) -> None:
    stack.script("x")
    await stack.events(maxTokens=7)
    request = stack.triton.requests[0]
    assert request["request_output_len"] == 7
    assert request["runtime_top_k"] == 1
    assert request["end_id"] == 2
    assert request["stop_words_list"] == [0, 1]
    assert request["streaming"] is True


async def test_length_when_the_limit_is_reached(stack: Stack) -> None:
    stack.script(TEXT)
    events = await stack.events(maxTokens=3)
    assert events[-2]["finishReason"] == "length"
    assert events[-2]["usage"]["completionTokens"] == 3
    assert "\N{REPLACEMENT CHARACTER}" not in text_of(events)


async def test_end_id_in_the_output_is_neither_shown_nor_counted(stack: Stack) -> None:
    ids = stack.script("abc")
    stack.triton.script.tokens = [*ids, 2]
    events = await stack.events()
    assert text_of(events) == "abc"
    assert events[-2]["usage"]["completionTokens"] == len(ids)
    assert events[-2]["finishReason"] == "stop"
    assert not stack.triton.stops
