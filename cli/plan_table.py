"""The plan as a table, each number with its reason."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from builder.plan import Figure, Plan
from cli.sizes import shown_bytes


def print_plan(plan: Plan) -> None:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", min_width=30)
    for figure in plan.figures:
        table.add_row(figure.name.replace("_", " "), _shown(figure), Text(figure.reason))
    console = Console()
    console.print(table)
    for problem in plan.problems:
        console.print(Text(f"Problem: {problem}", style="red"))
    for remark in plan.remarks:
        console.print(Text(f"Note: {remark}", style="yellow"))
    if plan.fits and plan.get("gpu_memory") is None:
        console.print("Add --gpu NAME or --gpu-memory SIZE to see what fits.")


def _shown(figure: Figure) -> str:
    if figure.unit == "bytes" and isinstance(figure.value, int):
        return shown_bytes(figure.value) if figure.value >= 2**20 else f"{figure.value:,} B"
    if isinstance(figure.value, int):
        return f"{figure.value:,} {figure.unit}"
    return f"{figure.value} {figure.unit}".strip()
