"""`ew bench`: how fast the running service is under load."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from cli.output import emit, json_option, report_errors, say, show_error
from common.errors import EnvironmentProblem, EwError, Interrupted, UsageError
from runtime import aiperf, client, loadplot, loadtest
from runtime.client import Endpoint
from runtime.loadtest import Level, LoadRequest

COLUMNS = (
    ("at once", "concurrency"),
    ("requests", "requests"),
    ("failed", "failed"),
    ("in", "input_tokens"),
    ("out", "output_tokens"),
    ("TTFT p50 ms", "ttft_p50"),
    ("p99", "ttft_p99"),
    ("ITL p50 ms", "itl_p50"),
    ("p99", "itl_p99"),
    ("TPOT ms", "tpot_mean"),
    ("tokens/s", "tokens_per_second"),
    ("requests/s", "requests_per_second"),
)


@click.command("bench")
@click.option("--model", help="Model id  [the only one served]")
@click.option(
    "--concurrency", default="1,8,32", show_default=True, help="Requests at once, a list of levels."
)
@click.option(
    "--input-len", type=click.IntRange(min=1), default=128, show_default=True, help="Prompt tokens."
)
@click.option(
    "--output-len", type=click.IntRange(min=1), default=64, show_default=True, help="Answer tokens."
)
@click.option(
    "--requests",
    "per_loop",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="For each at once.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also draw a PNG (needs matplotlib)."
)
@click.option(
    "--tool",
    type=click.Choice(["auto", "aiperf", "own"]),
    default="auto",
    show_default=True,
    help="What measures; auto is aiperf where it is installed.",
)
@click.option("--url", help="Another service than the one that runs here.")
@click.option("--key-file", type=click.Path(path_type=Path), help="File with the API key  [or EW_API_KEY]")
@json_option
@report_errors
def command(
    concurrency: str,
    plot: Path | None,
    tool: str,
    url: str | None,
    key_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure TTFT, inter-token latency and throughput over concurrency, at the client.

    Every request has a prompt of its own and asks for exactly the output length. Exits 1 if one failed.
    Ctrl-C ends it with what was measured so far.

    \b
    Examples:
      ./ew bench
      ./ew bench --concurrency 1,4,16 --input-len 512 --output-len 128 --plot bench.png
    """
    if plot:
        loadplot.require_matplotlib()
    endpoint = client.find_endpoint(url, key_file)
    options["model"] = client.choose_model(endpoint, options["model"])
    request = LoadRequest(concurrency=parse_levels(concurrency), **options)
    with_aiperf = uses_aiperf(tool)
    levels, trouble = measured(endpoint, request, with_aiperf=with_aiperf)
    document = {
        "url": endpoint.url,
        "tool": "aiperf" if with_aiperf else "own",
        **vars(request),
        "levels": [level.as_dict() for level in levels],
        **({"error": trouble.as_dict()} if trouble else {}),
    }
    emit(document, as_json=as_json, text=table(levels))
    if plot:
        title = f"{request.model}: {request.input_len} tokens in, {request.output_len} out"
        say(f"Wrote {loadplot.draw(levels, title, plot)}", as_json=as_json)
    if trouble:
        _end_early(trouble, as_json=as_json)
    sys.exit(1 if any(level.failed for level in levels) else 0)


def measured(
    endpoint: Endpoint, request: LoadRequest, *, with_aiperf: bool
) -> tuple[list[Level], EwError | None]:
    """The levels that were measured, and what kept it from measuring all.

    Raises:
        EwError: what kept it from measuring any.
    """
    levels: list[Level] = []
    trouble: EwError | None = None
    measure = aiperf.run if with_aiperf else loadtest.run
    try:
        measure(endpoint, request, lambda text: say(text, as_json=True), levels.append)
    except KeyboardInterrupt:
        trouble = Interrupted(hint="Run the same command again; it measures every level anew.")
    except EwError as error:
        trouble = error
    if trouble and not levels:
        raise trouble
    return levels, trouble


def _end_early(trouble: EwError, *, as_json: bool) -> NoReturn:
    """With --json the error is in the one document already."""
    if not as_json:
        show_error(trouble, as_json=False)
    sys.exit(trouble.exit_code)


def uses_aiperf(tool: str) -> bool:
    """
    Raises:
        EnvironmentProblem: it was asked for and is not installed.
    """
    if tool == "aiperf" and aiperf.find() is None:
        raise EnvironmentProblem(
            "aiperf is not on the path.",
            hint="Install it in an environment of its own (pipx install aiperf), or use --tool own.",
            code="aiperf_missing",
        )
    return tool != "own" and aiperf.find() is not None


def parse_levels(text: str) -> tuple[int, ...]:
    """ "1,8" -> (1, 8)"""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{text!r} is not a list of levels.", hint="Write it like --concurrency 1,8,32.")
    return tuple(int(part) for part in parts)


def table(levels: Sequence[Level]) -> str:
    """Right-aligned columns; errors below."""
    rows = [[title for title, _ in COLUMNS]]
    rows += [[_shown(getattr(level, name)) for _, name in COLUMNS] for level in levels]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += [f"failed: {error}" for level in levels for error in level.errors]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.1f}"
