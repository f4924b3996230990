"""vLLM alone, in its own process: what the stack is measured against. Run by benchmarks/gpu.py.

python -m benchmarks.gpu_bare --model DIR --streams 1 16 --prompt-len 128 --new-tokens 256 --engine-args JSON
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from typing import Any

from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind

from benchmarks.streams import Figures, Seen, summarize


def prompts(count: int, length: int, vocab: int, seed: int) -> list[list[int]]:
    """Random token ids, different for each request and seed, so that the prefix cache helps none."""
    source = random.Random(seed)
    return [[source.randrange(10, vocab) for _ in range(length)] for _ in range(count)]


def run_round(engine: Any, asked: list[list[int]], streams: int, new_tokens: int) -> Figures:
    """Keep `streams` requests running until all of `asked` are answered."""
    params = SamplingParams(
        temperature=0.0,
        max_tokens=new_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    seen: dict[str, Seen] = {}

    def begin() -> None:
        name = f"{time.monotonic()}-{len(seen)}"
        seen[name] = Seen(time.monotonic(), [])
        engine.add_request(name, {"prompt_token_ids": asked.pop()}, params)

    for _ in range(streams):
        begin()
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.monotonic()
        for output in outputs:
            one = seen[output.request_id]
            one.arrivals.append(now)
            one.tokens += len(output.outputs[0].token_ids)
            if output.finished and asked:
                begin()
    return summarize(list(seen.values()), streams)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, nargs="+", required=True)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--requests", type=int, default=3, help="of each stream, one after the other")
    parser.add_argument("--engine-args", type=json.loads, default={})
    options = parser.parse_args()
    arguments = {"model": options.model, "skip_tokenizer_init": True, **options.engine_args}
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    vocab = engine.model_config.get_vocab_size()
    results = []
    for streams in options.streams:
        run_round(engine, prompts(streams, options.prompt_len, vocab, streams), streams, 16)
        asked = prompts(streams * options.requests, options.prompt_len, vocab, 100 * streams)
        results.append(run_round(engine, asked, streams, options.new_tokens).as_dict())
    sys.stdout.write("\nRESULT " + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
