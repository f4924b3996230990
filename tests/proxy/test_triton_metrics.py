"""/metrics shows tritonserver's metrics beside the proxy's, and counts streams that broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.triton_metrics import TritonMetrics, merged
from tests.proxy.stack import MODEL, Stack
from tests.proxy.test_request_logs import scrape

TEXT = """# HELP nv_inference_count Number of inferences performed
# TYPE nv_inference_count counter
nv_inference_count{model="m",version="1"} 7
# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.25
"""


@asynccontextmanager
async def metrics_port(status: str = "200 OK") -> AsyncIterator[str]:
    """A server that answers every request with TEXT; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(TEXT)}\r\n\r\n{TEXT}".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def samples(text: str) -> dict[tuple[str, str], float]:
    """(name, labels) -> value; fails on a family that comes twice. The reader adds _total to counters."""
    families = [family for family in text_string_to_metric_families(text) if family.samples]
    assert len(families) == len({family.name for family in families})
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_one_text_passes_unchanged() -> None:
    assert "\n".join(merged([TEXT])) + "\n" == TEXT


def test_two_texts_are_one_with_a_label() -> None:
    both = samples("\n".join(merged([TEXT, TEXT.replace(" 7", " 8")])) + "\n")
    assert both["nv_inference_count_total", "model=m,tritonserver=0,version=1"] == 7
    assert both["nv_inference_count_total", "model=m,tritonserver=1,version=1"] == 8
    assert both["nv_cpu_utilization", "tritonserver=1"] == 0.25


async def test_a_server_that_does_not_answer_is_seen() -> None:
    async with metrics_port() as good, metrics_port("503 Unavailable") as bad:
        shown = TritonMetrics([good, bad, "http://127.0.0.1:9"])
        seen = samples((await shown.text()).decode())
        await shown.close()
    up = [seen["ew_tritonserver_up", f"tritonserver={number}"] for number in range(3)]
    assert up == [1, 0, 0]
    assert seen["nv_inference_count_total", "model=m,tritonserver=0,version=1"] == 7


async def test_the_proxy_shows_both(make_stack: Callable[..., Any]) -> None:
    async with metrics_port() as url, make_stack(triton_metrics=(url,)) as stack:
        seen = await scrape(stack)
    assert seen['nv_inference_count{model="m",version="1"}'] == 7
    assert seen['ew_tritonserver_up{tritonserver="0"}'] == 1
    assert any(name.startswith("python_info") for name in seen)


@pytest.mark.parametrize("choices", [1, 2])
async def test_a_stream_that_breaks_is_counted_once(stack: Stack, choices: int) -> None:
    name = f'ew_broken_streams_total{{model="{MODEL}",reason="engine"}}'
    before = (await scrape(stack)).get(name, 0)
    stack.script("one two three four", fail_after=2)
    body = {"model": MODEL, "prompt": "hi", "stream": True, "n": choices}
    status, _, data = await stack.post("/v1/completions", body)
    assert status == 200 and b"error" in data
    assert (await scrape(stack))[name] == before + 1


async def test_a_whole_stream_is_not_counted(stack: Stack) -> None:
    before = {name: value for name, value in (await scrape(stack)).items() if "broken" in name}
    stack.script("one two")
    await stack.events()
    assert {name: value for name, value in (await scrape(stack)).items() if "broken" in name} == before
