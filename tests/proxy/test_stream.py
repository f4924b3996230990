"""The documented call, through real sockets, against a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.proxy.stack import MODEL, Stack, parse_events, text_of

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
    stack.script(TEXT, pace=0.02)
    body = {"modelId": MODEL, "prompt": "hi"}
    for path in ("/api/v1/inference/stream", "/api/v1/inference"):
        status, headers, _ = await stack.post(path, body, **{"X-Request-Id": "abc-1"})
        assert (status, headers["X-Request-Id"]) == (200, "abc-1")
        times = server_timing(headers)
        assert 0 < times["queue"] < times["ttft"] <= times["total"]
        assert headers["X-Response-Time"] == f"{times['total']:.3f}ms"
        if path.endswith("stream"):
            assert headers["Content-Type"].startswith("text/event-stream")
        else:
            assert times["total"] > times["ttft"] + 20  # it waited for all tokens, and the stream for one


async def test_every_response_has_the_headers(make_stack: Callable[..., Any]) -> None:
    async with make_stack(cors_origins=("https://app.example",)) as stack:
        stack.script(TEXT)
        preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        for method, path, more, expected in (
            ("GET", "/health/live", {}, 200),
            ("GET", "/metrics", {}, 200),
            ("GET", "/v1/models", {}, 200),
            ("GET", "/nowhere", {}, 404),
            ("GET", "/api/v1/inference", {}, 405),
            ("POST", "/api/v1/inference", {}, 400),
            ("GET", "/api/v1/status", {"X-API-Key": "wrong"}, 401),
            ("OPTIONS", "/api/v1/inference", preflight, 200),
        ):
            asked = {"X-API-Key": stack.key, **more}
            async with stack.client.request(method, stack.url + path, headers=asked) as answer:
                assert answer.status == expected
                assert len(answer.headers.getall("X-Request-Id")) == 1
                assert answer.headers["X-Response-Time"].endswith("ms")
                assert "total" in server_timing(answer.headers)


def server_timing(headers: Mapping[str, str]) -> dict[str, float]:
    """Names and milliseconds."""
    parts = (part.split(";dur=") for part in headers["Server-Timing"].split(", "))
    return {name: float(value) for name, value in parts}


async def test_every_field_reaches_the_engine(stack: Stack) -> None:
    stack.script(TEXT, log_prob=-0.5)
    fields = {
        "maxTokens": 9,
        "minTokens": 2,
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 7,
        "seed": 11,
        "repetitionPenalty": 1.5,
        "presencePenalty": 0.25,
        "frequencyPenalty": 0.75,
        "badWords": ["fox"],
        "logprobs": True,
        "priority": 3,
        "guided": {"grammar": 'root ::= "a"'},
    }
    await stack.events(**fields)
    sent = stack.triton.requests[0]
    expected = {
        "request_output_len": 9,
        "min_tokens": 2,
        "temperature": 0.5,
        "runtime_top_p": 0.9,
        "runtime_top_k": 7,
        "seed": 11,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.25,
        "frequency_penalty": 0.75,
        "return_log_probs": True,
        "priority": 3,
        "guided_decoding_guide_type": "ebnf_grammar",
        "guided_decoding_guide": 'root ::= "a"',
    }
    assert {name: sent[name] for name in expected} == expected
    tokenizer = stack.service.registry.get(MODEL).tokenizer
    assert tokenizer.encode("fox", add_special_tokens=False).ids[0] in sent["bad_words_list"]


async def test_the_receipt_has_every_time(stack: Stack) -> None:
    stack.script(TEXT, pace=0.005)
    events = await stack.events()
    timings = events[-2]["timings"]
    assert set(timings) == {"queueMs", "ttftMs", "itlMeanMs", "itlP99Ms", "totalMs", "proxyMs"}
    assert 0 < timings["queueMs"] < timings["ttftMs"] < timings["totalMs"]
    assert 4 < timings["itlMeanMs"] <= timings["itlP99Ms"] < timings["totalMs"]
    assert 0 < timings["proxyMs"] < timings["totalMs"]


async def test_a_long_prefill_commits_the_status_after_a_while(make_stack: Callable[..., Any]) -> None:
    """Proxies in between give up a response that has not begun; errors after that are events."""
    async with make_stack(header_hold=0.1) as stack:
        stack.script(TEXT, prefill=0.6, fail_after=0)
        events = await stack.events()
        assert events[-1]["error"]["code"] == "engine" and "[DONE]" not in events
        stack.script(TEXT, prefill=0.3, fail_after=None)
        assert text_of(await stack.events()) == TEXT


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


async def test_a_model_that_cannot_stream_is_pseudo_streamed_and_says_so(stack: Stack) -> None:
    stack.script(TEXT, decoupled=False)
    body = {"modelId": MODEL, "prompt": "hi"}
    status, headers, data = await stack.post("/api/v1/inference/stream", body)
    events = parse_events(data)
    assert (status, headers["X-Stream-Mode"]) == (200, "pseudo")
    assert stack.triton.requests[0]["streaming"] is False
    assert [event["text"] for event in events[:-2]] == list(TEXT)
    assert events[-2]["streamMode"] == "pseudo"
    assert events[-1] == "[DONE]"


async def test_newline_delimited_json(stack: Stack) -> None:
    stack.script(TEXT)
    body = {"modelId": MODEL, "prompt": "hi"}
    accept = {"Accept": "application/x-ndjson"}
    _, headers, data = await stack.post("/api/v1/inference/stream", body, **accept)
    lines = [json.loads(line) for line in data.splitlines()]
    assert headers["Content-Type"] == "application/x-ndjson"
    assert "".join(line["text"] for line in lines) == TEXT
    assert lines[-1]["finishReason"] == "stop"


async def test_cors_only_for_named_origins(make_stack: Callable[..., Any]) -> None:
    async with make_stack(cors_origins=("https://app.example",)) as stack:
        for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
            url = stack.url + "/api/v1/inference"
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            async with stack.client.options(url, headers=asked) as answer:
                assert (answer.headers.get("Access-Control-Allow-Origin") == origin) is allowed


async def test_no_cors_by_default(stack: Stack) -> None:
    async with stack.client.get(stack.url + "/health/live", headers={"Origin": "https://a.b"}) as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers
