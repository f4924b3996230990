"""`ew migrate`: an upstream Triton repository -> a model entry of deploy/config.json."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cli.output import emit, json_option, report_errors
from common.config import MODEL_ID, ModelConfig, load_config
from common.errors import ConfigError, EwError, UsageError
from common.paths import home

if TYPE_CHECKING:
    from builder.migrate import Migration


@click.command(name="migrate")
@click.argument("source", type=click.Path(path_type=Path, file_okay=False))
@click.option("--to", type=click.Choice(["engine", "pytorch"]), required=True, help="What will serve it.")
@click.option("--model", "model_id", metavar="ID", required=True, help="The new entry's model id.")
@click.option("--package", metavar="DIR", help="The model's package. [default: models/ID]")
@click.option("--source-model", metavar="NAME", help="Which model of SOURCE, where it has several.")
@click.option("--write", is_flag=True, help="Add the entry to deploy/config.json, and render it.")
@json_option
@report_errors
def command(
    source: Path,
    to: Literal["engine", "pytorch"],
    model_id: str,
    package: str | None,
    source_model: str | None,
    write: bool,
    as_json: bool,
) -> None:
    """Turn a model of an upstream repository into a model entry, and say what carried over.

    SOURCE is a repository of upstream's inflight_batcher_llm or llmapi layout or for vLLM's backend, also as
    triton_cli writes it. A table shows every value: carried over, changed in meaning, or without counterpart.
    The weights are not touched: the convert-trt command that makes the package is printed. With --write the
    entry goes into deploy/config.json, and where the package is there already, its repository is rendered.

    \b
    Examples:
      ./ew migrate /srv/triton_model_repo --to engine --model llama --package models/llama --write
      ./ew migrate /srv/llmapi --to pytorch --model llama
    """
    from builder.migrate import migrate

    _refuse_id(model_id)
    result = migrate(source, to=to, package=package or f"models/{model_id}", name=source_model)
    rendered = _write(model_id, result) if write else None
    document = {
        "models": {model_id: result.entry},
        "rows": [vars(row) for row in result.rows],
        "convert": result.command,
        "note": result.note,
        "written": write,
        "repository": rendered,
    }
    emit(document, as_json=as_json, text=_text(model_id, result, rendered))


def _refuse_id(model_id: str) -> None:
    if not MODEL_ID.fullmatch(model_id):
        raise UsageError(
            f"{model_id!r} cannot be a model's id.",
            hint="Use letters (A-Z), digits, '.', '_' and '-', for example llama-3.1-8b.",
            code="model_id_invalid",
        )


def _write(model_id: str, result: Migration) -> str | None:
    """Put the entry into deploy/config.json and render it; the same entry may be there already.

    Raises:
        ConfigError: another entry has that id.
        EwError: the package cannot be rendered; the entry is written all the same.
    """
    from runtime.models import set_entry

    entry = ModelConfig.model_validate(result.entry)
    _refuse_other_entry(model_id, entry)
    set_entry(model_id, entry)
    try:
        return _render(model_id, entry.model_path)
    except EwError as error:
        kept = f"The entry {model_id} is in {home().config} all the same."
        error.why = f"{error.why.rstrip('.')}. {kept}" if error.why else kept
        raise


def _refuse_other_entry(model_id: str, entry: ModelConfig) -> None:
    config = home().config
    standing = load_config(config).models.get(model_id) if config.exists() else None
    if standing not in (None, entry):
        raise ConfigError(
            f"{config} has another model {model_id!r} already.",
            why="Its entry would be lost.",
            hint="Give the new one another id with --model, or remove that entry first.",
            code="model_id_taken",
        )


def _render(model_id: str, package: str) -> str | None:
    """The repository, where the package is there to render it from."""
    from builder.manifest import MANIFEST_NAME
    from builder.render import render

    place = home()
    if not (place.resolve(package) / MANIFEST_NAME).is_file():
        return None
    return str(render(load_config(place.config), place, only=[model_id]).repository)


def _text(model_id: str, result: Migration, rendered: str | None) -> str:
    if rendered:
        return f"{_table(model_id, result)}\n\nRendered into {rendered}."
    steps = [shlex.join(result.command), f"./ew render --model {model_id}"]
    return "\n".join([_table(model_id, result), "", "Then make the package and the repository:", *steps])


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
    return "\n".join([*lines, "", entry, *(["", f"Note: {result.note}"] if result.note else [])])
