"""`ew render`: write the Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cli.output import emit, json_option, report_errors

if TYPE_CHECKING:
    from builder.render import RenderReport


@click.command(name="render")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Instead of deploy/config.json."
)
@click.option("--model", "models", multiple=True, metavar="ID", help="Only this model; may be repeated.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Instead of model_repository/."
)
@click.option("--dry-run", is_flag=True, help="Show what would be written, change nothing.")
@click.option("--diff", "show_diff", is_flag=True, help="Show the changes line by line, change nothing.")
@click.option("--force", is_flag=True, help="Overwrite files that were edited by hand.")
@click.option("--trtllm-version", metavar="VERSION", help="TensorRT-LLM in the serving container.")
@click.option(
    "--layout",
    type=click.Choice(["ew", "upstream", "llmapi"]),
    default="ew",
    show_default=True,
    help="upstream: one model under the fixed names ensemble, preprocessing, tensorrt_llm, ...; vLLM models "
    "for vLLM's own backend. llmapi: upstream's text model, called tensorrt_llm.",
)
@json_option
@report_errors
def command(
    config_path: Path | None,
    models: tuple[str, ...],
    output: Path | None,
    dry_run: bool,
    show_diff: bool,
    force: bool,
    trtllm_version: str | None,
    layout: Literal["ew", "upstream", "llmapi"],
    as_json: bool,
) -> None:
    """Write the Triton model repository from deploy/config.json.

    For a model M it holds M (text in, text out), M-preprocessing, M-tensorrt_llm (token ids in and out) and
    M-postprocessing. Files that are right already stay untouched, models that left the configuration are
    removed, and files edited by hand are never overwritten without --force.

    \b
    Examples:
      ./ew render
      ./ew render --model smollm2-135m-trt --diff
      ./ew render --model smollm2-135m-trt --layout llmapi --output /srv/models
    """
    from builder.render import render
    from common.config import load_config
    from common.paths import home

    place = home()
    report = render(
        load_config(config_path or place.config),
        place,
        only=list(models) or None,
        output=output,
        dry_run=dry_run or show_diff,
        force=force,
        with_diff=show_diff,
        trtllm_version=trtllm_version,
        layout=layout,
    )
    document = {**report.as_dict(), **({"diff": report.diff} if show_diff else {})}
    emit(document, as_json=as_json, text=(report.diff or "No changes.") if show_diff else _summary(report))


def _summary(report: RenderReport) -> str:
    written, removed = ("to write", "to remove") if report.dry_run else ("written", "removed")
    lines = [f"{written:9}  {name}" for name in report.written]
    lines += [f"{removed:9}  {name}" for name in report.removed]
    counts = {written: report.written, "unchanged": report.unchanged, removed: report.removed}
    told = ", ".join(f"{len(names)} {what}" for what, names in counts.items())
    return "\n".join([*lines, f"{report.repository}: {told}"])
