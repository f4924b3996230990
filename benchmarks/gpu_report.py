"""Tables (and a plot) of what benchmarks/gpu.py wrote.

python -m benchmarks.gpu_report benchmarks/results/h100-vllm-llama*.json [--plot docs/images/gpu.png]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = (
    "| streams | bare tokens/s | triton | stack | stack / bare | TTFT p50 ms bare / stack | p99 "
    "| ITL p50 ms bare / stack | p99 | tokens an event |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def rows(shape: dict[str, Any]) -> Iterator[str]:
    nothing = [None] * len(shape["bare"])
    for bare, triton, stack in zip(shape["bare"], shape.get("triton", nothing), shape["stack"], strict=True):
        pairs = [
            f"{bare[key]:.1f} / {stack[key]:.1f}" if "ttft" in key else f"{bare[key]:.2f} / {stack[key]:.2f}"
            for key in ("ttft_p50", "ttft_p99", "itl_p50", "itl_p99")
        ]
        rates = [f"{layer['tokens_per_second']:,.0f}" if layer else "-" for layer in (bare, triton, stack)]
        ratio = f"{stack['tokens_per_second'] / bare['tokens_per_second']:.2f}"
        cells = [str(bare["streams"]), *rates, ratio, *pairs, f"{stack['tokens_per_event']:.1f}"]
        yield f"| {' | '.join(cells)} |"


def report(path: Path) -> str:
    document = json.loads(path.read_text(encoding="utf-8"))
    settings, parts = document["settings"], []
    for name, shape in document["shapes"].items():
        lengths = f"{settings['prompt_len']} tokens in, {settings['new_tokens']} out, greedy"
        engine = f"{settings['engine']}, Llama-{name} shape, random weights, bf16"
        parts.append(f"{engine}, {lengths}; {hardware(document, settings)}.\n\n{HEAD}")
        parts[-1] += "\n" + "\n".join(rows(shape)) + "\n"
    return "\n".join(parts)


def hardware(document: dict[str, Any], settings: dict[str, Any]) -> str:
    gpus = document["gpu"].splitlines()
    if len(gpus) < 2:
        return str(document["gpu"])
    return f"{len(gpus)} x {gpus[0]}, tensor parallel {settings['tp_size']}"


def plot(paths: list[Path], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = [pair for path in paths for pair in json.loads(path.read_text())["shapes"].items()]
    figure, axes = pyplot.subplots(1, len(shapes), figsize=(5 * len(shapes), 4), squeeze=False)
    for axis, (name, shape) in zip(axes[0], shapes, strict=True):
        for layer in ("bare", "triton", "stack"):
            streams = [row["streams"] for row in shape[layer]]
            axis.plot(streams, [row["tokens_per_second"] for row in shape[layer]], marker="o", label=layer)
        axis.set(title=f"Llama-{name} shape", xlabel="streams", ylabel="tokens/s", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    for path in options.results:
        sys.stdout.write(report(path) + "\n")
    if options.plot:
        plot(options.results, options.plot)


if __name__ == "__main__":
    main()
