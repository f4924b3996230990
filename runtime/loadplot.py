"""Draws a load test as a PNG. matplotlib does it and is not part of the base environment."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from common.errors import EnvironmentProblem
from runtime.loadtest import Level

PANELS = (
    ("Time to first token", "ms", (("p50", "ttft_p50"), ("p99", "ttft_p99"))),
    ("Inter-token latency", "ms", (("p50", "itl_p50"), ("p99", "itl_p99"))),
    ("Throughput", "output tokens/s", (("all streams", "tokens_per_second"),)),
)


def require_matplotlib() -> None:
    """
    Raises:
        EnvironmentProblem: it is not installed; said before minutes are spent on measuring.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentProblem(
            "Plots need matplotlib, which is not in the base environment.",
            hint="Install it (.venv/bin/python -m pip install matplotlib), or leave --plot out: --json has "
            "every figure.",
            code="matplotlib_missing",
        )


def draw(levels: Sequence[Level], title: str, target: Path) -> Path:
    """Three panels over concurrency: TTFT, ITL, throughput."""
    require_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 4), constrained_layout=True)
    concurrency = [level.concurrency for level in levels]
    for axis, (name, unit, lines) in zip(axes, PANELS, strict=True):
        for label, figure_name in lines:
            axis.plot(concurrency, [getattr(level, figure_name) for level in levels], marker="o", label=label)
        axis.set(title=name, xlabel="requests at once", ylabel=unit, xticks=concurrency)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return target
