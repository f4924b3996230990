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
from worker.protocol import Finish, GenerationRequest, Sampling, Update


def run_round(adapter: Any, streams: int, requests: int, options: argparse.Namespace) -> Figures:
    """Keep `streams` requests running until `requests` of each are answered."""
    source = random.Random(streams)
    seen: dict[int, Seen] = {}

    def begin() -> None:
        request_id = time.monotonic_ns()
        ids = array("i", (source.randrange(10, 250) for _ in range(options.prompt_len)))
        adapter.submit(GenerationRequest(request_id, ids, Sampling(options.new_tokens)))
        seen[request_id] = Seen(time.monotonic(), [])

    for _ in range(streams):
        begin()
    while adapter.busy:
        results = adapter.step()
        now = time.monotonic()
        for result in results:
            if isinstance(result, Update):
                seen[result.request_id].arrivals.append(now)
                seen[result.request_id].tokens += len(result.tokens)
                if result.finish != Finish.NONE and len(seen) < streams * requests:
                    begin()
    return summarize(list(seen.values()), streams)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--streams", type=int, nargs="+", required=True)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--engine-args", help="not used by this engine")
    options = parser.parse_args()
    lengths = {"max_input_len": options.prompt_len, "max_output_len": options.new_tokens}
    adapter = load(options.model, {**lengths, "max_batch_size": max(options.streams)})
    results = []
    for streams in options.streams:
        run_round(adapter, streams, 1, options)
        results.append(run_round(adapter, streams, options.requests, options).as_dict())
    sys.stdout.write("RESULT " + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
