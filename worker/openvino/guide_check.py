"""`python -m worker.openvino.guide_check FOLDER`: says of each guide whether the engine can run it.

A question is a line of JSON on standard input, {"type", "guide", "end_id"}; the answer is a line of JSON,
{"problem": why not, or ""}. The engine here has the vocabulary of the real one and a model that prefers no
token. The kernel ends this process when a guide takes too long or too much memory.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from common.tensors import STORED, TensorSpec, TensorWriter
from worker.openvino.graph import write_ir
from worker.openvino.guides import structured_output
from worker.openvino.vocabulary import textless_tokens

CPU_SECONDS = 2.0
SECONDS = 60.0
MORE_MEMORY_BYTES = 2 << 30
TRIED_TOKENS = 16
CACHE_BLOCKS = 4
WIDTH = 32
# "[18:13:59] /where/it/was/compiled/json_schema_converter.cc:898: "
SOURCE_OF_MESSAGE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")


def write_idle_model(folder: Path, vocab_size: int) -> None:
    """A model of one layer of zeros, which likes all tokens alike."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text(json.dumps(_config(vocab_size)), encoding="ascii")
    specs = {name: TensorSpec("F16", shape) for name, shape in _shapes(vocab_size).items()}
    with TensorWriter(checkpoint / "rank0.safetensors", specs) as writer:
        for name, spec in specs.items():
            writer.write(name, np.zeros(spec.shape, STORED["F16"]))
    write_ir(checkpoint, folder)


def _config(vocab_size: int) -> dict[str, Any]:
    return {
        "architecture": "LlamaForCausalLM",
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": vocab_size,
        "position_embedding_type": "rope_gpt_neox",
        "tie_word_embeddings": True,
    }


def _shapes(vocab_size: int) -> dict[str, tuple[int, ...]]:
    layer = "transformer.layers.0."
    squares = ("attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
    return {
        "transformer.vocab_embedding.weight": (vocab_size, WIDTH),
        "transformer.ln_f.weight": (WIDTH,),
        f"{layer}input_layernorm.weight": (WIDTH,),
        f"{layer}post_layernorm.weight": (WIDTH,),
        f"{layer}attention.qkv.weight": (3 * WIDTH, WIDTH),
        **{f"{layer}{name}.weight": (WIDTH, WIDTH) for name in squares},
    }


class Checker:
    """One guide after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._textless = textless_tokens(folder) or frozenset()
        self._ids = itertools.count()
        self._pipeline = self._load()

    def problem(self, question: Mapping[str, Any]) -> str:
        """Why the engine cannot run a guide, empty when it can."""
        config = genai.GenerationConfig()
        config.max_new_tokens = TRIED_TOKENS
        config.set_eos_token_id(question["end_id"])
        config.structured_output_config = structured_output(question["type"], question["guide"])
        with _quiet():
            try:
                tokens = self._generate(config)
            except RuntimeError as error:
                self._pipeline = self._load()  # a failed step leaves its request behind
                return SOURCE_OF_MESSAGE.sub("", str(error).strip())
        if any(token in self._textless and token != question["end_id"] for token in tokens):
            return "it leads to where no token of this model can follow."
        return ""

    def _load(self) -> Any:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = CACHE_BLOCKS
        return genai.ContinuousBatchingPipeline(self._folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": 1})

    def _generate(self, config: Any) -> list[int]:
        prompt = ov.Tensor(np.zeros((1, 1), dtype=np.int64))
        handle = self._pipeline.add_request(next(self._ids), prompt, config)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return [token for output in handle.read_all() for token in output.generated_ids]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the engine writes about a bad guide out of the worker's log."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def main(folder: Path) -> None:
    checker = Checker(folder)
    _bound_memory()
    for line in sys.stdin.buffer:
        _bound_time(CPU_SECONDS, SECONDS)
        problem = checker.problem(json.loads(line))
        _bound_time(0.0, 0.0)
        print(json.dumps({"problem": problem}), flush=True)


def _bound_time(cpu_seconds: float, seconds: float) -> None:
    """The signals are not handled, so they end the process in whatever code it is."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _bound_memory() -> None:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    match = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
    if match is not None:
        limit = (int(match[1]) << 10) + MORE_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
