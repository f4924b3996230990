"""Conversion beside `cp -r` of the same bytes: wall time and peak memory.

    python -m benchmarks.convert [--sizes 1.1B 3B] [--repeat 3] [--folder DIR] [--json FILE]

Makes random Llama checkpoints (bf16, shards of 1 GiB at most), then in turns copies and converts them:
each conversion is a process of its own, timed from its start to its end. Everything made is deleted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np

from common.tensors import INDEX_NAME, TensorSpec, TensorWriter, cast

ROOT = Path(__file__).resolve().parent.parent
SHARD_BYTES = 2**30
POOL_ITEMS = 2**24
CONVERSION = """
import sys
from pathlib import Path
from builder.checkpoint import write_checkpoint
from builder.families import Layout
source, output, dtype, tp, digests = sys.argv[1:]
layout = Layout(dtype=dtype, tp_size=int(tp))
report = write_checkpoint(Path(source), Path(output), layout, digests=digests == "True")
print(report.seconds)
"""


@dataclass(frozen=True)
class Shape:
    """A Llama of `layers` layers; sizes as in config.json."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int = 32000

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-05,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        key = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            name = f"model.layers.{layer}."
            yield name + "input_layernorm.weight", (self.hidden,)
            yield name + "mlp.down_proj.weight", (self.hidden, self.intermediate)
            yield name + "mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield name + "mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield name + "post_attention_layernorm.weight", (self.hidden,)
            yield name + "self_attn.k_proj.weight", (key, self.hidden)
            yield name + "self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield name + "self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield name + "self_attn.v_proj.weight", (key, self.hidden)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)


SHAPES = {
    "1.1B": Shape(2048, 22, 32, 4, 5632),
    "3B": Shape(3200, 26, 32, 32, 8640),
}


@dataclass(frozen=True)
class Case:
    """One line of the table; without a dtype it is the copy."""

    name: str
    tp_size: int = 0
    dtype: str = ""
    digests: bool = False


CASES = (
    Case("cp -r"),
    Case("tp 1", 1, "bfloat16"),
    Case("tp 2", 2, "bfloat16"),
    Case("tp 4", 4, "bfloat16"),
    Case("tp 1, to float16", 1, "float16"),
    Case("tp 4, to float16", 4, "float16"),
    Case("tp 1 + sha256", 1, "bfloat16", True),
    Case("tp 4 + sha256", 4, "bfloat16", True),
)


@dataclass(frozen=True)
class Run:
    """One process: wall time, wall time inside write_checkpoint, processor time, peak resident memory."""

    wall_s: float
    inside_s: float
    cpu_s: float
    peak_mib: float


@dataclass(frozen=True)
class Result:
    """Medians over the repetitions; `times_cp` is wall time over that of `cp -r`."""

    model: str
    case: str
    gigabytes: float
    wall_s: float
    inside_s: float
    cpu_s: float
    peak_mib: float
    times_cp: float


def _shards(shape: Shape) -> list[dict[str, TensorSpec]]:
    shards: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name, size in shape.tensors():
        spec = TensorSpec("BF16", size)
        if filled and filled + spec.nbytes > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += spec.nbytes
    return shards


def make_model(folder: Path, shape: Shape) -> int:
    """Write a random checkpoint; returns its bytes of weights."""
    random = np.random.default_rng(0)
    pool = cast((random.standard_normal(POOL_ITEMS) * 0.02).astype(np.float32), "F32", "BF16")
    shards = _shards(shape)
    weight_map: dict[str, str] = {}
    for number, specs in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(specs, file)
        with TensorWriter(folder / file, specs, {"format": "pt"}) as writer:
            for name, spec in specs.items():
                start = int(random.integers(POOL_ITEMS))
                writer.write(name, np.take(pool, np.arange(start, start + spec.items), mode="wrap"))
    total = sum(spec.nbytes for specs in shards for spec in specs.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(shape.config()))
    return total


def _made_elsewhere(folder: Path, shape: Shape) -> int:
    """make_model in another process: what this one once held would count as its children's peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(make_model, (folder, shape))


def _timed(command: list[str]) -> Run:
    """Run a process; what it prints is its time inside write_checkpoint."""
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command[:3])} failed")
    wall = time.monotonic() - started
    cpu = usage.ru_utime + usage.ru_stime
    return Run(wall, float(output or wall), cpu, usage.ru_maxrss / 1024)


def run_case(case: Case, source: Path, output: Path) -> Run:
    """Time one case; leaves no file and no unwritten page."""
    command = ["cp", "-r", str(source), str(output)]
    if case.dtype:
        arguments = [str(source), str(output), case.dtype, str(case.tp_size), str(case.digests)]
        command = [sys.executable, "-c", CONVERSION, *arguments]
    run = _timed(command)
    shutil.rmtree(output)
    os.sync()
    return run


def measure(name: str, folder: Path, repeat: int) -> list[Result]:
    """All cases for one model, in turns, so that a slow minute of the machine meets all of them."""
    source = folder / name
    source.mkdir()
    total = _made_elsewhere(source, SHAPES[name])
    os.sync()
    runs: dict[Case, list[Run]] = {case: [] for case in CASES}
    for _ in range(repeat):
        for case in CASES:
            runs[case].append(run_case(case, source, folder / "output"))
    shutil.rmtree(source)
    copy = statistics.median(run.wall_s for run in runs[CASES[0]])
    return [_result(name, case, total, measured, copy) for case, measured in runs.items()]


def _result(name: str, case: Case, total: int, runs: list[Run], copy: float) -> Result:
    rows = zip(*(astuple(run) for run in runs), strict=True)
    wall, inside, cpu, peak = (statistics.median(column) for column in rows)
    return Result(name, case.name, total / 1e9, wall, inside, cpu, peak, wall / copy)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpus[0].split(":")[1].strip() if cpus else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_average": round(os.getloadavg()[0], 1),
    }


def _print(results: list[Result]) -> None:
    print(
        f"{'model':6} {'case':18} {'GB':>5} {'wall s':>7} {'inside s':>8} {'cpu s':>6} {'MiB':>5} {'x cp':>5}"
    )
    for row in results:
        print(
            f"{row.model:6} {row.case:18} {row.gigabytes:5.2f} {row.wall_s:7.2f} "
            f"{row.inside_s:8.2f} {row.cpu_s:6.2f} {row.peak_mib:5.0f} {row.times_cp:5.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; the default is the temporary folder")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="ew-benchmark-") as folder:
        for name in options.sizes:
            results += measure(name, Path(folder), options.repeat)
    print(json.dumps(machine()))
    _print(results)
    if options.json:
        document = {"machine": machine(), "results": [asdict(row) for row in results]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
