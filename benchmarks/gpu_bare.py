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


def prompts(streams: int, length: int, vocab: int, seed: int) -> list[list[int]]:
    """Random token ids, different for each stream and seed, so that the prefix cache helps none."""
    source = random.Random(seed)
    return [[source.randrange(10, vocab) for _ in range(length)] for _ in range(streams)]


def run_round(engine: Any, asked: list[list[int]], new_tokens: int, tag: str) -> Figures:
    params = SamplingParams(
        temperature=0.0,
        max_tokens=new_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    seen = {f"{tag}-{index}": Seen([]) for index in range(len(asked))}
    began = time.perf_counter()
    for index, ids in enumerate(asked):
        engine.add_request(f"{tag}-{index}", {"prompt_token_ids": ids}, params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter() - began
        for output in outputs:
            one = seen[output.request_id]
            one.arrivals.append(now)
            one.tokens += len(output.outputs[0].token_ids)
    return summarize(list(seen.values()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, nargs="+", required=True)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--engine-args", type=json.loads, default={})
    options = parser.parse_args()
    arguments = {"model": options.model, "skip_tokenizer_init": True, **options.engine_args}
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    vocab = engine.model_config.get_vocab_size()
    run_round(engine, prompts(4, options.prompt_len, vocab, 0), 16, "warm")
    results = []
    for streams in options.streams:
        rounds = [
            run_round(
                engine,
                prompts(streams, options.prompt_len, vocab, 100 * streams + turn),
                options.new_tokens,
                f"{streams}-{turn}",
            )
            for turn in range(options.repeat)
        ]
        results.append(max(rounds, key=lambda one: one.tokens_per_second).as_dict())
    sys.stdout.write("\nRESULT " + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
