"""transformers' continuous batching alone, by its own manager: what benchmarks/gpu.py compares cuda-hf with.

python -m benchmarks.hf_bare --model DIR --streams 1 16 --prompt-len 128 --new-tokens 256 --engine-args JSON

It runs as transformers would have it: CUDA graphs and preparing ahead where its own rules allow them, one
choice of tokens for all requests (the likeliest), every token streamed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.streams import Figures, Seen, summarize
from worker.hf.load import batching_config
from worker.hf.options import EngineOptions


def start(options: argparse.Namespace) -> Any:
    """A manager of transformers, with the cache and batch sizes of our worker."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    limits = options.engine_args
    settings = EngineOptions(max_batch_size=int(limits["max_num_seqs"]), dtype=str(limits["dtype"]))
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=settings.dtype, attn_implementation="sdpa"
    ).to(device)
    config = replace(batching_config(settings, device), use_async_batching=None)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=config,
    )
    manager.warmup()
    manager.start()
    return manager


def run_round(manager: Any, streams: int, requests: int, options: argparse.Namespace) -> Figures:
    """Keep `streams` requests running until `requests` of each are answered."""
    source = random.Random(100 * streams + requests)
    seen: dict[str, Seen] = {}
    running = 0

    def begin() -> None:
        name = f"{streams}-{requests}-{len(seen)}"
        prompt = [source.randrange(10, 250) for _ in range(options.prompt_len)]
        seen[name] = Seen(time.monotonic(), [])
        manager.add_request(prompt, request_id=name, max_new_tokens=options.new_tokens, streaming=True)

    for _ in range(streams):
        begin()
        running += 1
    while running:
        output = manager.get_result(timeout=30)
        if output is None or output.error:
            raise SystemExit(f"transformers stopped: {output and output.error}")
        one = seen[output.request_id]
        one.arrivals.append(time.monotonic())
        one.tokens = len(output.generated_tokens)
        if output.is_finished():
            running -= 1
            if len(seen) < streams * requests:
                begin()
                running += 1
    return summarize(list(seen.values()), streams)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, nargs="+", required=True)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--requests", type=int, default=3, help="of each stream, one after the other")
    parser.add_argument("--engine-args", type=json.loads, required=True)
    options = parser.parse_args()
    manager = start(options)
    results = []
    for streams in options.streams:
        run_round(manager, streams, 1, options)
        results.append(run_round(manager, streams, options.requests, options).as_dict())
    manager.stop(block=True, timeout=10)
    sys.stdout.write("\nRESULT " + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
