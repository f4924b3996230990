"""`ew restart`: stop the service and start it again as it was started."""

from __future__ import annotations

import click

from cli.output import emit, json_option, report_errors
from cli.start import ENGINES, ready_document, ready_text
from cli.steps import Steps
from cli.stop import drain_option
from common.config import Engine
from runtime import lifecycle


@click.command("restart")
@drain_option
@click.option("--engine", type=click.Choice(ENGINES), help="Restart only the tritonservers of this engine.")
@click.option("--env", help="Restart only the tritonserver of this environment.")
@json_option
@report_errors
def command(drain: float, engine: Engine | None, env: str | None, as_json: bool) -> None:
    """Drain and stop, then start the same models with the same options; packages and config are read again.

    \b
    Examples:
      ./ew restart
      ./ew restart --engine cuda-vllm
    """
    with Steps() as steps:
        service = lifecycle.restart(drain_seconds=drain, progress=steps, engine=engine, env=env)
    emit(ready_document(service), as_json=as_json, text=ready_text(service))
