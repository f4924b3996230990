"""The cpu engine alone, in its own process: the reference of benchmarks/gpu.py on machines without a GPU.

python -m benchmarks.cpu_bare --model PACKAGE --streams 1 4 --prompt-len 128 --new-tokens 16
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from array import array
from pathlib import Path
from typing import Any

from benchmarks.streams import Figures, Seen, summarize
from worker.openvino.adapter import load
from worker.protocol import GenerationRequest, Sampling, Update


def run_round(adapter: Any, streams: int, options: argparse.Namespace, first_id: int) -> Figures:
    source = random.Random(first_id)
    seen: dict[int, Seen] = {}
    began = time.perf_counter()
    for request_id in range(first_id, first_id + streams):
        ids = array("i", (source.randrange(10, 250) for _ in range(options.prompt_len)))
        adapter.submit(GenerationRequest(request_id, ids, Sampling(options.new_tokens)))
        seen[request_id] = Seen([])
    while adapter.busy:
        results = adapter.step()
        now = time.perf_counter() - began
        for result in results:
            if isinstance(result, Update):
                seen[result.request_id].arrivals.append(now)
                seen[result.request_id].tokens += len(result.tokens)
    return summarize(list(seen.values()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--streams", type=int, nargs="+", required=True)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--engine-args", help="not used by this engine")
    options = parser.parse_args()
    lengths = {"max_input_len": options.prompt_len, "max_output_len": options.new_tokens}
    adapter = load(options.model, {**lengths, "max_batch_size": max(options.streams)})
    results = []
    for streams in options.streams:
        rounds = [
            run_round(adapter, streams, options, streams * 1000 + 500 * t) for t in range(options.repeat)
        ]
        results.append(max(rounds, key=lambda one: one.tokens_per_second).as_dict())
    sys.stdout.write("RESULT " + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
