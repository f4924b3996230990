"""`ew status`: what is running, where and how well."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.output import emit, json_option, report_errors
from common.errors import ServiceError
from runtime.status import SOUND, status

WATCH_SECONDS = 2


@click.command("status")
@click.option("--watch", is_flag=True, help="Show it again every two seconds until Ctrl-C.")
@json_option
@report_errors
def command(watch: bool, as_json: bool) -> None:
    """Show engines, models, requests, memory and processes.

    Exits with 0 only when every model that is meant to serve is ready: one that was unloaded is not meant to.
    With --watch --json each look is one line of JSON.

    \b
    Examples:
      ./ew status
      ./ew status --watch
      ./ew status --json
    """
    if watch:
        _watch(as_json)
        return
    document = status()
    emit(document, as_json=as_json)
    if not as_json:
        _show(document)
    if document["state"] not in SOUND:
        sys.exit(ServiceError.exit_code)


def _watch(as_json: bool) -> None:
    try:
        while True:
            document = status()
            if as_json:
                click.echo(json.dumps(document, ensure_ascii=False))
                sys.stdout.flush()
            else:
                click.clear()
                _show(document)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:  # the way to end it
        return


def _show(document: dict[str, Any]) -> None:
    if "url" not in document:
        click.echo(_absent(document["state"]))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{document['state']}[/bold]  {document['url']}  up {_duration(document['uptime'])}")
    for rows in (_engine_rows(document), _model_rows(document), _process_rows(document)):
        console.print(_table(rows))
    console.print(f"API key: {document['key_file']}", soft_wrap=True)
    for model in document["models"]:
        if model["last_error"]:
            console.print(f"[red]{model['model']}[/red]: {escape(model['last_error'])}", soft_wrap=True)
    for log, line in document["last_errors"].items():
        console.print(f"[red]{log}[/red]: {escape(line)}", soft_wrap=True)


def _absent(state: str) -> str:
    if state == "stale":
        return "Nothing is running; a service ended without ./ew stop. The next start or stop cleans up."
    return "Nothing is running. Start with: ./ew start --model ID"


def _engine_rows(document: dict[str, Any]) -> list[list[str]]:
    rows = [["engine", "version", "state", "pid", "up", "port", "host", "GPU"]]
    for engine in document["engines"]:
        where = f" in {engine['env']}" if engine["env"] else ""
        rows.append(
            [
                engine["engine"] + where,
                _shown(engine["version"]),
                engine["state"],
                _shown(engine["pid"]),
                _duration(engine["uptime"]),
                str(engine["ports"]["http"]),
                _size(engine["host_memory"]),
                _size(engine["gpu_memory"]),
            ]
        )
    return rows


def _model_rows(document: dict[str, Any]) -> list[list[str]]:
    rows = [["model", "state", "pid", "active", "queued", "served", "tokens/s", "host", "GPU"]]
    for model in document["models"]:
        counts = [_shown(model[name]) for name in ("pid", "active", "queued", "served")]
        speed = "-" if model["tokens_per_second"] is None else f"{model['tokens_per_second']:.1f}"
        memory = [_size(model["host_memory"]), _size(model["gpu_memory"])]
        rows.append([model["model"], model["state"], *counts, speed, *memory])
    return rows


def _process_rows(document: dict[str, Any]) -> list[list[str]]:
    rows = [["process", "pid", "memory"]]
    for process in document["processes"]:
        memory = _size(process["memory"]) if process["alive"] else "ended"
        rows.append([process["role"], str(process["pid"]), memory])
    return rows


def _table(rows: list[list[str]]) -> Table:
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


def _size(memory: int | None) -> str:
    return "-" if memory is None else f"{memory / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
