"""`ew stop`: drain and end the service."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.output import emit, json_option, report_errors
from cli.steps import Steps
from runtime import teardown
from runtime.teardown import StopReport


@click.command("stop")
@click.option(
    "--drain", type=float, default=30.0, show_default=True, help="Seconds that running streams may take."
)
@json_option
@report_errors
def command(drain: float, as_json: bool) -> None:
    """Drain and stop the service; afterwards no process, port or shared memory of it is left.

    \b
    Example:
      ./ew stop
    """
    with Steps() as steps:
        report = teardown.stop(drain_seconds=drain, progress=steps)
    emit(asdict(report), as_json=as_json, text=_text(report))


def _text(report: StopReport) -> str:
    if not report.was_running:
        return "Nothing was running."
    killed = f"; {report.killed} processes had to be killed" if report.killed else ""
    return f"Stopped {', '.join(report.models)} in {report.seconds:.1f} s{killed}."
