"""The stack beside the bare engine: throughput, time to first token and time between tokens.

    python -m benchmarks.gpu --engine cuda-vllm --shapes 1B 8B --streams 1 16 64 256 --json FILE
    python -m benchmarks.gpu --engine cpu --shapes tiny --streams 1 4 --new-tokens 16      (no GPU needed)
    python -m benchmarks.gpu --engine cuda-hf --shapes tiny --streams 1 4 --new-tokens 16  (nor here)

Makes random Llama checkpoints (bf16), then for each measures, with the same prompts and lengths: the bare
engine in its own process; the engine under tritonserver (`generate_stream` of the tensorrt_llm model); the
whole stack through the proxy. EW_WORKER_PYTHON names the Python that holds the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import string
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.convert import Shape, make_model
from benchmarks.machine import describe
from benchmarks.streams import Endpoint, load, median_round
from builder.convert import convert
from builder.request import ConvertRequest
from common import atomic
from common.paths import SOURCE_ROOT, home
from runtime import lifecycle, teardown
from runtime.lifecycle import StartRequest
from runtime.state import Service

LLAMA_VOCAB = 128256
SHAPES = {
    "tiny": Shape(256, 2, 8, 4, 512, 512),
    "1B": Shape(2048, 16, 32, 8, 8192, LLAMA_VOCAB),
    "8B": Shape(4096, 32, 32, 8, 14336, LLAMA_VOCAB),
}
MODEL = "bench"
BARE = {"cuda-vllm": "benchmarks.vllm_bare", "cuda-hf": "benchmarks.hf_bare", "cpu": "benchmarks.cpu_bare"}
LAYERS = ("bare", "triton", "stack")


def make_tokenizer(folder: Path, vocab: int) -> None:
    """One token a byte, and a word for every other id, so that any output has text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"Ġw{index}" for index in range(len(alphabet), vocab))]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def make_package(shape: Shape, engine: str, folder: Path, lengths: tuple[int, int], tp_size: int) -> Path:
    """Checkpoint and package; returns the checkpoint."""
    source = folder / "hf"
    source.mkdir()
    make_model(source, shape)
    make_tokenizer(source, shape.vocab)
    request = ConvertRequest(
        model=str(source),
        output=folder / "package",
        dtype="bfloat16",
        max_batch_size=256,
        max_input_len=lengths[0],
        max_output_len=lengths[1],
        tp_size=tp_size,
    )
    cpu = engine == "cpu"
    convert(replace(request, stage="checkpoint") if cpu else replace(request, runtime="pytorch"))
    return source


@contextmanager
def served(
    engine: str, folder: Path, lengths: tuple[int, int], dtype: str, tp_size: int, port: int
) -> Iterator[Service]:
    """The package in `folder` behind tritonserver and the proxy."""
    entry = {
        "engine": engine,
        "model_path": str(folder / "package"),
        "dtype": dtype,
        "precision": "exact" if dtype == "float32" else "fast",
        "max_batch_size": 256,
        "max_input_len": lengths[0],
        "max_output_len": lengths[1],
        "tensor_parallel_size": tp_size,
    }
    atomic.write_json(home().config, {"models": {MODEL: entry}})
    request = StartRequest((MODEL,), engine=engine, port=port, timeout=900.0)  # type: ignore[arg-type]
    service = lifecycle.start(request, progress=lambda step: print(step, file=sys.stderr, flush=True))
    try:
        yield service
    finally:
        teardown.take_down(service, 5.0, lambda step: None)


def plan(
    layer: str, streams: int, requests: int, turn: int, options: argparse.Namespace
) -> list[list[dict[str, Any]]]:
    """Requests whose prompts all differ: the prefix cache helps none."""
    source = random.Random(f"{layer}-{streams}-{turn}")
    return [[body(layer, source, options) for _ in range(requests)] for _ in range(streams)]


def body(layer: str, source: random.Random, options: argparse.Namespace) -> dict[str, Any]:
    text = "".join(source.choices(string.ascii_letters, k=options.prompt_len))
    tokens = options.new_tokens
    if layer == "stack":
        lengths = {"maxTokens": tokens, "minTokens": tokens}
        return {"modelId": MODEL, "raw": True, "temperature": 0, "prompt": text, **lengths}
    ids = {"input_ids": [ord(letter) - 33 for letter in text], "input_lengths": options.prompt_len}
    return {**ids, "request_output_len": tokens, "streaming": True}


def endpoint(layer: str, service: Service) -> Endpoint:
    if layer == "stack":
        key = Path(service.key_file).read_text(encoding="utf-8").strip()
        path = "/api/v1/inference/stream"
        return Endpoint(service.ports.proxy, path, r'"text":"(?:[^"\\]|\\.)+"\}', {"X-API-Key": key})
    path = f"/v2/models/{MODEL}-tensorrt_llm/generate_stream"
    return Endpoint(service.ports.triton_http, path, r'"output_ids":(\[[0-9,]+\]|\d+)', {})


def measure_layer(layer: str, service: Service, options: argparse.Namespace) -> list[dict[str, Any]]:
    target = endpoint(layer, service)
    results = []
    for streams in options.streams:
        load(target, plan(layer, streams, 1, 0, options), processes=options.clients)
        plans = [
            plan(layer, streams, options.requests, turn, options) for turn in range(1, options.rounds + 1)
        ]
        results.append(median_round([load(target, one, processes=options.clients) for one in plans]))
        print(layer, results[-1], file=sys.stderr, flush=True)
    return results


def measure_bare(engine: str, source: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    python = os.environ.get("EW_WORKER_PYTHON", sys.executable)
    command = [python, "-m", BARE[engine], "--model", str(source), "--streams", *map(str, options.streams)]
    command += ["--prompt-len", str(options.prompt_len), "--new-tokens", str(options.new_tokens)]
    command += ["--requests", str(options.requests), "--rounds", str(options.rounds)]
    command += ["--tp-size", str(options.tp_size)]
    done = subprocess.run(command, cwd=SOURCE_ROOT, stdout=subprocess.PIPE, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    results: list[dict[str, Any]] = json.loads(line.removeprefix("RESULT "))
    print("bare", results, file=sys.stderr, flush=True)
    return results


class GpuWatch:
    """What nvidia-smi says once a second while the block runs; nothing where there is none."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()

    def __enter__(self) -> GpuWatch:
        self._thread = threading.Thread(target=self._watch)
        if shutil.which("nvidia-smi"):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        while not self._stop.wait(1.0):
            lines = subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.splitlines()
            self._samples += [(float(a), float(b)) for a, b in (line.split(",") for line in lines)]

    def as_dict(self) -> dict[str, float]:
        if not self._samples:
            return {}
        use, memory = zip(*self._samples, strict=True)
        return {"gpu_use_percent_mean": sum(use) / len(use), "gpu_memory_mib_max": max(memory)}


def measure_shape(name: str, options: argparse.Namespace) -> dict[str, Any]:
    lengths = (options.prompt_len, options.new_tokens)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        source = make_package(SHAPES[name], options.engine, folder, lengths, options.tp_size)
        if "bare" in options.layers:
            with GpuWatch() as watch:
                target = source if options.engine != "cpu" else folder / "package"
                results["bare"] = measure_bare(options.engine, target, options)
            results["bare_gpu"] = watch.as_dict()
        with served(options.engine, folder, lengths, "bfloat16", options.tp_size, options.port) as service:
            for layer in (layer for layer in options.layers if layer != "bare"):
                with GpuWatch() as watch:
                    results[layer] = measure_layer(layer, service, options)
                results[f"{layer}_gpu"] = watch.as_dict()
    return results | {"ratios": ratios(results)}


def ratios(results: dict[str, Any]) -> list[dict[str, float]]:
    """Per number of streams: throughput over the bare engine's, and ITL added to it in ms."""
    rows = []
    for layer in ("triton", "stack"):
        for bare, other in zip(results.get("bare", []), results.get(layer, []), strict=False):
            throughput = round(other["tokens_per_second"] / bare["tokens_per_second"], 3)
            added = {
                f"added_itl_{p}_ms": round(other[f"itl_{p}"] - bare[f"itl_{p}"], 3) for p in ("p50", "p99")
            }
            ttft = round(other["ttft_p50"] - bare["ttft_p50"], 2)
            row = {"layer": layer, "streams": bare["streams"], "throughput": throughput}
            rows.append({**row, **added, "added_ttft_p50_ms": ttft})
    return rows


def gpu_name() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.strip()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=sorted(BARE), default="cuda-vllm")
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["1B"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--requests", type=int, default=3, help="of each stream, one after the other")
    parser.add_argument("--rounds", type=int, default=1, help="of which the median is told")
    parser.add_argument("--clients", type=int, default=2, help="processes that make the load")
    parser.add_argument("--tp-size", type=int, default=1)
    parser.add_argument("--port", type=int, default=8096)
    parser.add_argument("--folder", type=Path, help="where checkpoints are made; deleted afterwards")
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser.parse_args()


def main() -> None:
    options = parse()
    settings = {key: value for key, value in vars(options).items() if key not in ("folder", "json")}
    document: dict[str, Any] = {"machine": describe(), "gpu": gpu_name(), "settings": settings, "shapes": {}}
    for name in options.shapes:
        document["shapes"][name] = measure_shape(name, options)
        text = json.dumps(document, indent=2)
        if options.json:
            options.json.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(document["shapes"], indent=1) + "\n")


if __name__ == "__main__":
    main()
