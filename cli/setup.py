"""`ew setup`: make or repair an engine's environment."""

from __future__ import annotations

import sys

import click

from cli.output import emit, json_option, report_errors
from common.errors import EnvironmentProblem
from runtime import pythons


@click.command("setup")
@click.option(
    "--engine", type=click.Choice(["cpu"]), default="cpu", show_default=True, help="The engine to set up."
)
@json_option
@report_errors
def command(engine: str, as_json: bool) -> None:
    """Make or repair an engine's environment.

    The launcher makes the base environment before any verb runs, so by now it is there; this checks it.

    \b
    Example:
      ./ew setup --engine cpu
    """
    python = pythons.inspect_python(sys.executable)
    if python is None or not python.library:
        version = (sys.version_info[0], sys.version_info[1])
        raise EnvironmentProblem(
            f"{pythons.library_name(version)}, which Triton's Python backend needs, is not on this machine.",
            hint=f"Install {pythons.library_package(version)}, then run the same command again.",
            code="libpython_missing",
        )
    facts = {"engine": engine, "environment": sys.prefix, "python": sys.version.split()[0], "ready": True}
    emit(facts, as_json=as_json, text=f"The {engine} environment is ready: {python.name}")
