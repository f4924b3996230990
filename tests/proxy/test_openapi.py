"""The schema is served, names every route, and random requests never meet an unexplained answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.gateway import routes
from proxy.openapi import document
from tests.proxy.stack import MODEL, Stack

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(document()["components"]["schemas"]["InferenceRequest"]["properties"])
CHAT_FIELDS = sorted(document()["components"]["schemas"]["ChatRequest"]["properties"])
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def test_the_document_names_every_route(stack: Stack) -> None:
    status, served = await stack.get("/openapi.json")
    assert status == 200
    made = {route.path for route in routes(stack.service)} - {"/openapi.json"}
    assert set(served["paths"]) == made


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(document())
    schemas = document()["components"]["schemas"]
    parts = text.split('"$ref": "#/components/schemas/')[1:]
    assert parts and all(part.split('"')[0] in schemas for part in parts)


def test_documented_fields_are_camel_case() -> None:
    assert {"modelId", "maxTokens", "topP", "topK", "timeoutMs", "repetitionPenalty"} <= set(FIELDS)


@FUZZ
@given(fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
async def test_random_fields(stack: Stack, fields: dict[str, Any]) -> None:
    await check(stack, "/api/v1/inference", {"modelId": MODEL, "prompt": "hi", **fields})


@FUZZ
@given(fields=st.dictionaries(st.sampled_from(CHAT_FIELDS), JSON, max_size=4))
async def test_random_chat_fields(stack: Stack, fields: dict[str, Any]) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
    await check(stack, "/v1/chat/completions", body)


@FUZZ
@given(body=st.binary(max_size=200))
async def test_random_bytes(stack: Stack, body: bytes) -> None:
    status, _, data = await stack.post("/api/v1/inference/stream", body)
    assert status == 400
    assert json.loads(data)["error"]["code"]


@FUZZ
@given(path=st.text("/abv1%.~ é\\", max_size=30), method=st.sampled_from(["GET", "POST", "PUT", "HEAD"]))
async def test_random_paths(stack: Stack, path: str, method: str) -> None:
    url = f"{stack.url}/{path}".replace("#", "")
    async with stack.client.request(method, url, headers={"X-API-Key": stack.key}) as answer:
        assert answer.status in (200, 400, 404, 405)


async def check(stack: Stack, path: str, body: dict[str, Any]) -> None:
    stack.script("ok")
    try:
        data = json.dumps(body, allow_nan=True).encode()
    except UnicodeEncodeError:
        return
    status, headers, answer = await asyncio.wait_for(stack.post(path, data), 10)
    assert status in (200, 400, 404), answer
    assert headers["X-Request-Id"] and headers["X-Response-Time"].endswith("ms")
    if status != 200:
        error = json.loads(answer)["error"]
        assert error["code"] != "internal" and error["message"] and error["hint"]
    assert not stack.service.active
