"""Is what the stack answers on a GPU right, and does it give everything back?

    python -m benchmarks.gpu_correctness --engine cuda-vllm --json FILE

The demo model's greedy tokens against those of transformers in f32 (tests/worker/data), in float32 and in
bfloat16; then 256 requests at once of which a part is cancelled at random moments: afterwards no request may
be active, one more request may use no more KV blocks than its own tokens take, and no more GPU memory may be
taken than before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.gpu import MODEL, gpu_name, served
from benchmarks.machine import describe
from builder.convert import convert
from builder.request import ConvertRequest
from common.paths import SOURCE_ROOT
from runtime.demo_checkpoint import demo_checkpoint
from runtime.state import Service

EXPECTED = SOURCE_ROOT / "tests" / "worker" / "data" / "expected_demo.json"
END_ID = 2
ACTIVE = re.compile(r'nv_trt_llm_request_metrics\{[^}]*request_type="active"[^}]*\} ([0-9.]+)')
USED = re.compile(r'nv_trt_llm_kv_cache_block_metrics\{[^}]*kv_cache_block_type="used"[^}]*\} ([0-9.]+)')


def url(service: Service) -> str:
    return f"http://127.0.0.1:{service.ports.triton_http}/v2/models/{MODEL}-tensorrt_llm/generate_stream"


def request(ids: list[int], new_tokens: int, **fields: Any) -> dict[str, Any]:
    lengths = {"input_lengths": len(ids), "request_output_len": new_tokens}
    return {"input_ids": ids, **lengths, "streaming": True, **fields}


async def generate(session: aiohttp.ClientSession, address: str, body: dict[str, Any]) -> list[int]:
    tokens: list[int] = []
    async with session.post(address, json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                if "error" in event:
                    raise RuntimeError(event["error"])
                found = event.get("output_ids", [])
                tokens += (found if isinstance(found, list) else [found])[: event["sequence_length"]]
    return tokens


async def compare(service: Service) -> dict[str, Any]:
    """Every prompt at once, so that the batch is mixed; where a first token differs, its position."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    async with aiohttp.ClientSession() as session:
        bodies = [request(one["ids"], len(one["tokens"]), end_id=END_ID) for one in expected.values()]
        answers = await asyncio.gather(*(generate(session, url(service), body) for body in bodies))
    differing = {}
    for prompt, tokens in zip(expected, answers, strict=True):
        wanted = [token for token in expected[prompt]["tokens"] if token != END_ID]
        if tokens != wanted:
            pairs = enumerate(zip(tokens, wanted, strict=False))
            first = next((at for at, (a, b) in pairs if a != b), min(len(tokens), len(wanted)))
            differing[prompt] = {"first_difference": first, "of": len(wanted)}
    return {"prompts": len(expected), "equal": len(expected) - len(differing), "differing": differing}


async def one_of_many(session: aiohttp.ClientSession, address: str, source: random.Random) -> str:
    """A request that is left after a random time with probability one half."""
    body = request([source.randrange(100, 40000) for _ in range(64)], 200)
    patience = source.uniform(0.0, 1.0) if source.random() < 0.5 else 120.0
    try:
        tokens = await asyncio.wait_for(generate(session, address, body), patience)
    except asyncio.TimeoutError:
        return "cancelled"
    return "whole" if len(tokens) == 200 else f"short: {len(tokens)}"


async def cancel_many(service: Service, turn: int) -> dict[str, int]:
    source = random.Random(turn)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        jobs = [one_of_many(session, url(service), source) for _ in range(256)]
        ends = await asyncio.gather(*jobs)
    return {end: ends.count(end) for end in sorted(set(ends))}


async def metric(service: Service, pattern: re.Pattern[str]) -> float:
    async with aiohttp.ClientSession() as session:
        address = f"http://127.0.0.1:{service.ports.triton_metrics}/metrics"
        async with session.get(address) as response:
            return sum(map(float, pattern.findall(await response.text())))


async def seconds_until_idle(service: Service, limit: float = 10.0) -> float:
    began = time.monotonic()
    while await metric(service, ACTIVE):
        if time.monotonic() - began > limit:
            return float("inf")
        await asyncio.sleep(0.02)
    return round(time.monotonic() - began, 3)


async def blocks_of_one_request(service: Service) -> float:
    """The most KV blocks in use while a single request runs: more than its own tokens would be a leak."""
    async with aiohttp.ClientSession() as session:
        body = request(list(range(100, 164)), 400)
        job = asyncio.create_task(generate(session, url(service), body))
        most = 0.0
        while not job.done():
            most = max(most, await metric(service, USED))
            await asyncio.sleep(0.05)
        await job
    return most


def gpu_memory_mib() -> float | None:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout.split()[0])
    return None


async def cancellation(service: Service, turns: int) -> dict[str, Any]:
    await cancel_many(service, -1)
    before = gpu_memory_mib()
    ends = [await cancel_many(service, turn) for turn in range(turns)]
    idle = await seconds_until_idle(service)
    alone = await blocks_of_one_request(service)
    return {
        "rounds_of_256": ends,
        "seconds_until_idle": idle,
        "active_after": await metric(service, ACTIVE),
        "most_kv_blocks_of_one_request_of_464_tokens_after": alone,
        "gpu_memory_mib": {"before": before, "after": gpu_memory_mib()},
    }


def make_package(engine: str, dtype: str, folder: Path) -> None:
    source = str(demo_checkpoint(lambda step: None))
    common: dict[str, Any] = {"model": source, "output": folder / "package", "dtype": dtype}
    if engine == "cpu":
        convert(ConvertRequest(**common, stage="checkpoint"))
    else:
        convert(ConvertRequest(**common, runtime="pytorch"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=("cuda-vllm", "cuda-hf", "cpu"), default="cuda-vllm")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--port", type=int, default=8095)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {"machine": describe(), "gpu": gpu_name(), "engine": options.engine}
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory() as made:
            make_package(options.engine, dtype, Path(made))
            with served(options.engine, Path(made), (512, 512), dtype, 1, options.port) as service:
                document[dtype] = {"greedy_against_transformers_f32": asyncio.run(compare(service))}
                if dtype == options.dtypes[-1]:
                    document[dtype]["cancellation"] = asyncio.run(cancellation(service, options.turns))
        text = json.dumps(document, indent=2, ensure_ascii=False)
        if options.json:
            options.json.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
