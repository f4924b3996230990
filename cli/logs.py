"""`ew logs`: show or follow the service's logs."""

from __future__ import annotations

import click

from cli.output import emit, json_option, report_errors
from common.errors import UsageError
from common.paths import home
from runtime import logs


@click.command("logs")
@click.argument("log", required=False, type=click.Choice(logs.LOGS))
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="Lines of each log."
)
@json_option
@report_errors
def command(log: str | None, follow: bool, lines: int, as_json: bool) -> None:
    """Show the end of the logs: triton, worker and proxy, or one of them.

    \b
    Examples:
      ./ew logs
      ./ew logs -f worker
      ./ew logs proxy -n 5 --json
    """
    names = logs.chosen(log)
    if as_json:
        if follow:
            raise UsageError("--follow has no end, so it does not go with --json.", hint="Leave one out.")
        emit({name: logs.tail(name, lines) for name in names}, as_json=True)
        return
    if not any(logs.log_path(name).exists() for name in names):
        click.echo(f"There are no logs in {home().logs} yet; ./ew start begins them.", err=True)
    follower = logs.Follower(names)
    for name in names:
        for line in logs.tail(name, lines):
            _show(name, line, labelled=len(names) > 1)
    if follow:
        _follow(follower, labelled=len(names) > 1)


def _follow(follower: logs.Follower, *, labelled: bool) -> None:
    try:
        for name, line in follower.follow():
            _show(name, line, labelled=labelled)
    except KeyboardInterrupt:  # the way to end it
        return


def _show(name: str, line: str, *, labelled: bool) -> None:
    click.echo(f"{name:<6} | {line}" if labelled else line)
