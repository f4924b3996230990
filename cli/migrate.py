"""`ew migrate`: an upstream Triton repository -> a model entry of deploy/config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cli.output import emit, json_option, report_errors

if TYPE_CHECKING:
    from builder.migrate import Migration


@click.command(name="migrate")
@click.argument("source", type=click.Path(path_type=Path, file_okay=False))
@click.option("--to", type=click.Choice(["engine", "pytorch"]), required=True, help="What will serve it.")
@click.option("--model", "model_id", metavar="ID", required=True, help="The new entry's model id.")
@click.option("--package", metavar="DIR", help="The model's package. [default: models/ID]")
@click.option("--write", is_flag=True, help="Add the entry to deploy/config.json.")
@json_option
@report_errors
def command(
    source: Path,
    to: Literal["engine", "pytorch"],
    model_id: str,
    package: str | None,
    write: bool,
    as_json: bool,
) -> None:
    """Turn an upstream repository into a model entry, and say what carried over.

    SOURCE is a repository of upstream's inflight_batcher_llm layout, also as triton_cli writes it. The table
    shows every value: carried over, changed in meaning, or without counterpart. The weights are not touched:
    make the package from the model's checkpoint with convert-trt, then run ./ew render.

    \b
    Examples:
      ./ew migrate /srv/triton_model_repo --to engine --model llama --package models/llama --write
    """
    from builder.migrate import migrate
    from common.config import ModelConfig
    from runtime.models import set_entry

    result = migrate(source, to=to, package=package or f"models/{model_id}")
    if write:
        set_entry(model_id, ModelConfig.model_validate(result.entry))
    document = {
        "models": {model_id: result.entry},
        "rows": [vars(row) for row in result.rows],
        "written": write,
    }
    emit(document, as_json=as_json, text=_table(model_id, result))


def _table(model_id: str, result: Migration) -> str:
    titles = {"carried": "Carried over", "changed": "Changed its meaning", "dropped": "Has no counterpart"}
    lines = []
    for outcome in ("carried", "changed", "dropped"):
        rows = [row for row in result.rows if row.outcome == outcome]
        lines.append(f"{titles[outcome]} ({len(rows)})")
        for row in rows:
            note = f"   {row.note}" if row.note else ""
            lines.append(f"  {row.model:24} {row.key} = {row.value}{note}")
    entry = json.dumps({"models": {model_id: result.entry}}, ensure_ascii=False, indent=2)
    return "\n".join([*lines, "", entry])
