"""`ew status`: what is running, where and how well."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cli.output import emit, json_option, report_errors
from common.errors import ServiceError
from runtime.status import status


@click.command("status")
@click.option("--watch", is_flag=True, help="Show it again every two seconds until Ctrl-C.")
@json_option
@report_errors
def command(watch: bool, as_json: bool) -> None:
    """Show state, models, requests, processes and ports. Exits with 0 only when the service is ready.

    \b
    Examples:
      ./ew status
      ./ew status --json
    """
    if watch:
        _watch()
        return
    document = status()
    emit(document, as_json=as_json)
    if not as_json:
        _show(document)
    if document["state"] != "ready":
        sys.exit(ServiceError.exit_code)


def _watch() -> None:
    try:
        while True:
            click.clear()
            _show(status())
            time.sleep(2)
    except KeyboardInterrupt:  # the way to end it
        return


def _show(document: dict[str, Any]) -> None:
    if "url" not in document:
        click.echo(_absent(document["state"]))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{document['state']}[/bold]  {document['url']}  up {_duration(document['uptime'])}")
    console.print(_models_table(document["models"]))
    console.print(_processes_table(document["processes"]))
    console.print(f"API key: {document['key_file']}", soft_wrap=True)
    for log, line in document["last_errors"].items():
        console.print(f"[red]{log}[/red]: {line}", soft_wrap=True)


def _absent(state: str) -> str:
    if state == "stale":
        return "Nothing is running; a service ended without ./ew stop. The next start or stop cleans up."
    return "Nothing is running. Start with: ./ew start --model ID"


def _models_table(models: list[dict[str, Any]]) -> Table:
    table = Table("model", "state", "active", "queued", "served", box=None, pad_edge=False)
    for model in models:
        counts = (model["active"], model["queued"], model["served"])
        table.add_row(
            model["model"], model["state"], *("-" if count is None else str(count) for count in counts)
        )
    return table


def _processes_table(processes: list[dict[str, Any]]) -> Table:
    table = Table("process", "pid", "memory", box=None, pad_edge=False)
    for process in processes:
        memory = f"{process['memory'] / 2**20:.0f} MiB" if process["alive"] else "ended"
        table.add_row(process["role"], str(process["pid"]), memory)
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
