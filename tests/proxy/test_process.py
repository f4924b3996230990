"""`python -m proxy` as a process: workers on one port, metrics over all of them, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest

from common.paths import SOURCE_ROOT
from tests.proxy.fake_triton import FakeTriton, Script
from tests.proxy.stack import MODEL, parse_events, text_of

BODY = {"modelId": MODEL, "prompt": "hi"}
TOKENS = [5, 6, 7] * 20


@dataclass
class Process:
    url: str
    process: asyncio.subprocess.Process
    triton: FakeTriton
    client: aiohttp.ClientSession

    async def stream(self) -> bytes:
        async with self.client.post(self.url + "/api/v1/inference/stream", json=BODY) as answer:
            return await answer.read()

    async def metric(self, name: str) -> float:
        async with self.client.get(self.url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@asynccontextmanager
async def running(package: Path, folder: Path, *options: str) -> AsyncIterator[Process]:
    triton = FakeTriton({f"{MODEL}-tensorrt_llm": "READY"}, Script(tokens=TOKENS))
    await triton.start()
    config = folder / "config.json"
    config.write_text(json.dumps({"models": {MODEL: {"engine": "cpu", "model_path": str(package)}}}))
    port = free_port()
    arguments = [f"--config={config}", f"--triton={triton.url}", f"--port={port}", *options]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "proxy",
        *arguments,
        env={**os.environ, "PYTHONPATH": str(SOURCE_ROOT)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with aiohttp.ClientSession() as client:
        made = Process(f"http://127.0.0.1:{port}", process, triton, client)
        await until_ready(made)
        yield made
    if process.returncode is None:
        process.kill()
        await process.wait()
    await triton.stop()


async def until_ready(made: Process) -> None:
    for _ in range(300):
        try:
            async with made.client.get(made.url + "/health/ready") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        assert made.process.returncode is None
        await asyncio.sleep(0.1)
    raise AssertionError("the proxy was not ready within 30 s")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.mark.parametrize("workers", [1, 2])
async def test_streams_metrics_and_drain(package: Path, tmp_path: Path, workers: int) -> None:
    async with running(package, tmp_path, f"--workers={workers}", "--drain=5") as made:
        answers = await asyncio.gather(*(made.stream() for _ in range(20)))
        assert all(parse_events(answer)[-1] == "[DONE]" for answer in answers)
        assert await made.metric("ew_completion_tokens_total") == 20 * len(TOKENS)
        assert await made.metric("ew_active_generations") == 0
        children = psutil.Process(made.process.pid).children(recursive=True)
        made.triton.script.pace = 0.02
        last = asyncio.ensure_future(made.stream())
        await asyncio.sleep(0.3)
        made.process.send_signal(signal.SIGTERM)
        assert parse_events(await last)[-1] == "[DONE]"
        await asyncio.wait_for(made.process.wait(), 20)
        assert not psutil.wait_procs(children, timeout=5)[1]


async def test_what_does_not_end_in_time_ends_in_words(package: Path, tmp_path: Path) -> None:
    async with running(package, tmp_path, "--drain=0.5") as made:
        made.triton.script.tokens, made.triton.script.pace = TOKENS * 20, 0.02
        last = asyncio.ensure_future(made.stream())
        await asyncio.sleep(0.3)
        made.process.send_signal(signal.SIGTERM)
        events = parse_events(await asyncio.wait_for(last, 10))
        assert events[-1]["error"]["code"] == "draining"
        assert events[-1]["finishReason"] == "cancelled"
        assert text_of(events)
        await asyncio.wait_for(made.process.wait(), 20)
        assert made.triton.stops


async def test_a_port_in_use_is_an_error(package: Path, tmp_path: Path) -> None:
    async with running(package, tmp_path) as made:
        port = made.url.rsplit(":", 1)[1]
        second = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "proxy",
            f"--config={tmp_path / 'config.json'}",
            f"--port={port}",
            env={**os.environ, "PYTHONPATH": str(SOURCE_ROOT)},
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await asyncio.wait_for(second.wait(), 30) != 0


async def test_trace_context_is_passed_on(package: Path, tmp_path: Path) -> None:
    async with running(package, tmp_path) as made:
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        headers = {"traceparent": trace, "tracestate": "a=b"}
        url = made.url + "/api/v1/inference"
        async with made.client.post(url, json=BODY, headers=headers) as answer:
            assert answer.status == 200
        seen = [one for one in made.triton.headers if "traceparent" in one]
        assert (seen[0]["traceparent"], seen[0]["tracestate"]) == (trace, "a=b")
