"""`ew test`: the project's own checks and tests."""

from __future__ import annotations

import subprocess
import sys
from typing import TextIO

import click

from cli.output import emit, json_option
from common.paths import SOURCE_ROOT

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)
# Most tests wait for servers, so two processes share the cores well; a file's fixtures stay in one of them.
SPREAD = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")


@click.command("test", context_settings={"ignore_unknown_options": True})
@click.option("--checks/--no-checks", default=True, show_default=True, help="Run ruff and mypy first.")
@json_option
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def command(checks: bool, as_json: bool, pytest_args: tuple[str, ...]) -> None:
    """Run ruff, mypy and the tests; further arguments go to pytest.

    Without arguments the tests run in two processes, else in one.

    \b
    Examples:
      ./ew test
      ./ew test --no-checks tests/builder -k llama
    """
    runs = [list(check) for check in CHECKS] if checks else []
    runs.append(["pytest", *(pytest_args or SPREAD)])
    results = {" ".join(run): passes(run, sys.stderr if as_json else sys.stdout) for run in runs}
    failed = [run for run, passed in results.items() if not passed]
    for run in failed:
        click.secho(f"failed: {run}", fg="red", err=True)
    emit({"passed": not failed, "runs": results}, as_json=as_json)
    sys.exit(1 if failed else 0)


def passes(run: list[str], output: TextIO) -> bool:
    click.secho(f"== {' '.join(run)}", bold=True, file=output)
    output.flush()
    return subprocess.run([sys.executable, "-m", *run], cwd=SOURCE_ROOT, stdout=output).returncode == 0
