"""vLLM alone, in its own process: what benchmarks/gpu.py compares cuda-vllm with."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind

from benchmarks import bare


class VllmEngine:
    """See benchmarks.bare.BareEngine."""

    def __init__(self, options: argparse.Namespace) -> None:
        arguments = EngineArgs(
            model=options.model,
            skip_tokenizer_init=True,
            max_model_len=options.prompt_len + options.new_tokens,
            max_num_seqs=options.max_batch_size,
            tensor_parallel_size=options.tp_size,
            dtype=options.dtype,
        )
        self._engine = LLMEngine.from_engine_args(arguments)
        self._params = SamplingParams(
            temperature=0.0,
            max_tokens=options.new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def add(self, name: str, prompt: list[int]) -> None:
        self._engine.add_request(name, {"prompt_token_ids": prompt}, self._params)

    def step(self) -> Iterable[bare.News]:
        return [
            bare.News(one.request_id, len(one.outputs[0].token_ids), one.finished)
            for one in self._engine.step()
        ]

    def close(self) -> None:
        self._engine.engine_core.shutdown()


if __name__ == "__main__":
    bare.main(VllmEngine)
