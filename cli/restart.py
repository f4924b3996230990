"""`ew restart`: stop the service and start it again as it was started."""

from __future__ import annotations

import click

from cli.output import emit, json_option, report_errors
from cli.start import ready_document, ready_text
from cli.steps import Steps
from common.errors import ServiceError
from runtime import lifecycle, state, teardown


@click.command("restart")
@click.option(
    "--drain",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that running streams may take.",
)
@json_option
@report_errors
def command(drain: float, as_json: bool) -> None:
    """Drain and stop, then start the same models with the same options; packages and config are read again.

    \b
    Example:
      ./ew restart
    """
    service = state.load()
    if service is None:
        raise ServiceError(
            "Nothing is running.", hint="Start with: ./ew start --model ID", code="not_running"
        )
    request = lifecycle.last_request(service)
    with Steps() as steps:
        teardown.stop(drain_seconds=drain, progress=steps)
        service = lifecycle.start(request, progress=steps)
    emit(ready_document(service), as_json=as_json, text=ready_text(service))
