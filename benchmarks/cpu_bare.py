"""The cpu engine alone, in its own process: the reference of benchmarks/gpu.py on machines without a GPU."""

from __future__ import annotations

import argparse
from array import array
from collections.abc import Iterable
from pathlib import Path

from benchmarks import bare
from worker.openvino.adapter import load
from worker.protocol import Finish, GenerationRequest, Sampling, Update


class CpuEngine:
    """See benchmarks.bare.BareEngine."""

    def __init__(self, options: argparse.Namespace) -> None:
        lengths = {"max_input_len": options.prompt_len, "max_output_len": options.new_tokens}
        self._adapter = load(Path(options.model), {**lengths, "max_batch_size": max(options.streams)})
        self._new_tokens = options.new_tokens
        self._names: dict[int, str] = {}

    def add(self, name: str, prompt: list[int]) -> None:
        number = len(self._names)
        self._names[number] = name
        self._adapter.submit(GenerationRequest(number, array("i", prompt), Sampling(self._new_tokens)))

    def step(self) -> Iterable[bare.News]:
        updates = [result for result in self._adapter.step() if isinstance(result, Update)]
        return [
            bare.News(self._names[update.request_id], len(update.tokens), update.finish != Finish.NONE)
            for update in updates
        ]

    def close(self) -> None:
        """It has no process of its own."""


if __name__ == "__main__":
    bare.main(CpuEngine)
