"""Logs and metrics: what happened, never what was said."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from prometheus_client import CollectorRegistry, Histogram

from proxy.logs import JsonFormatter
from proxy.metrics import BulkHistogram
from tests.proxy.stack import MODEL, Stack
from tests.proxy.test_cancel import until

SECRET_PROMPT = "my-secret-question"
ANSWER = "a-secret-answer"


async def test_the_access_log_names_key_model_and_end_but_no_text(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    stack.script(ANSWER)
    with caplog.at_level(logging.INFO, "proxy.access"):
        await stack.events(prompt=SECRET_PROMPT, requestId="r-1")
    record = next(record for record in caplog.records if record.name == "proxy.access")
    line = JsonFormatter().format(record)
    entry = json.loads(line)
    assert (entry["key"], entry["modelId"], entry["status"]) == ("test", MODEL, 200)
    assert (entry["requestId"], entry["finishReason"]) == ("r-1", "stop")
    assert entry["completionTokens"] == len(stack.triton.script.tokens)
    everything = caplog.text + line
    assert not any(secret in everything for secret in (SECRET_PROMPT, ANSWER, stack.key))


async def test_metrics_count_what_happened(stack: Stack) -> None:
    before = await scrape(stack)
    ids = stack.script("one two three", pace=0.002)
    await stack.events()
    after = await scrape(stack)

    def grew(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert grew(f'ew_completion_tokens_total{{model="{MODEL}"}}') == len(ids)
    assert grew(f'ew_itl_seconds_count{{model="{MODEL}"}}') == len(ids) - 1
    assert grew(f'ew_ttft_seconds_count{{model="{MODEL}"}}') == 1
    assert grew(f'ew_generations_total{{finish_reason="stop",model="{MODEL}"}}') == 1
    assert after[f'ew_active_generations{{model="{MODEL}"}}'] == 0


async def test_a_generation_waits_until_its_first_token(stack: Stack) -> None:
    async def gauges() -> tuple[float, float]:
        samples = await scrape(stack)
        waiting, active = (f'ew_{kind}_generations{{model="{MODEL}"}}' for kind in ("waiting", "active"))
        return samples[waiting], samples[active]

    stack.script("one two three", prefill=0.5, pace=0.2)
    running = asyncio.ensure_future(stack.events())
    assert await until(lambda: bool(stack.triton.running))
    assert await gauges() == (1, 1)
    await asyncio.sleep(0.6)
    assert await gauges() == (0, 1)
    await running
    assert await gauges() == (0, 0)
    stack.script("x", fail_after=0)
    await stack.post("/api/v1/inference", {"modelId": MODEL, "prompt": "hi"})
    assert await gauges() == (0, 0)


async def scrape(stack: Stack) -> dict[str, float]:
    async with stack.client.get(stack.url + "/metrics") as answer:
        lines = (await answer.text()).splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_values_observed_at_once_count_as_one_by_one() -> None:
    values = sorted((0.0, 0.5, 1.0, 1.5, 2.0, 9.0))
    registry = CollectorRegistry()
    bulk = BulkHistogram("bulk", "", ["model"], buckets=(1.0, 2.0), registry=registry)
    single = Histogram("single", "", ["model"], buckets=(1.0, 2.0), registry=registry)
    bulk.labels("m").observe_all(values)
    for value in values:
        single.labels("m").observe(value)
    for sample in ("bucket", "sum", "count"):
        labels = {"model": "m"}
        for bound in ("1.0", "2.0", "+Inf") if sample == "bucket" else ("",):
            wanted = {**labels, "le": bound} if bound else labels
            seen = [registry.get_sample_value(f"{name}_{sample}", wanted) for name in ("bulk", "single")]
            assert seen[0] == seen[1] is not None
