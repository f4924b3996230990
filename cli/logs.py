"""`ew logs`: show or follow the service's logs."""

from __future__ import annotations

import click

from cli.output import emit, json_option, report_errors
from common.config import load_config
from common.errors import UsageError
from common.paths import home
from runtime import logs, state


@click.command("logs")
@click.argument("what", metavar="[triton|worker|proxy|MODEL]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="Lines of each log."
)
@json_option
@report_errors
def command(what: str | None, follow: bool, lines: int, as_json: bool) -> None:
    """Show the end of the logs: triton, worker and proxy, one of them, or what they say of one model.

    \b
    Examples:
      ./ew logs
      ./ew logs -f worker
      ./ew logs smollm2-135m-trt
      ./ew logs proxy -n 5 --json
    """
    view = logs.chosen(what, _models())
    if as_json:
        if follow:
            raise UsageError("--follow has no end, so it does not go with --json.", hint="Leave one out.")
        emit({name: view.tail(name, lines) for name in view.names}, as_json=True)
        return
    if not any(logs.log_path(name).exists() for name in view.names):
        click.echo(f"There are no logs in {home().logs} yet; ./ew start begins them.", err=True)
    follower = view.follower()
    for name in view.names:
        for line in view.tail(name, lines):
            _show(name, line, labelled=len(view.names) > 1)
    if follow:
        _follow(follower, labelled=len(view.names) > 1)


def _models() -> tuple[str, ...]:
    """The models that may be asked for: those of the config and of the running service."""
    service = state.load()
    configured = load_config(home().config).models if home().config.exists() else ()
    return tuple(dict.fromkeys([*configured, *(service.models if service else ())]))


def _follow(follower: logs.Follower, *, labelled: bool) -> None:
    try:
        for name, line in follower.follow():
            _show(name, line, labelled=labelled)
    except KeyboardInterrupt:  # the way to end it
        return


def _show(name: str, line: str, *, labelled: bool) -> None:
    click.echo(f"{name:<6} | {line}" if labelled else line)
