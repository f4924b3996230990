"""`ew test`: the project's own checks and tests."""

from __future__ import annotations

import subprocess
import sys

import click

from common.paths import SOURCE_ROOT

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)


@click.command("test", context_settings={"ignore_unknown_options": True})
@click.option("--checks/--no-checks", default=True, show_default=True, help="Run ruff and mypy first.")
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def command(checks: bool, pytest_args: tuple[str, ...]) -> None:
    """Run ruff, mypy and the tests; further arguments go to pytest.

    \b
    Examples:
      ./ew test
      ./ew test --no-checks tests/builder -k llama
    """
    runs = [list(check) for check in CHECKS] if checks else []
    runs.append(["pytest", *pytest_args])
    failed = [run for run in runs if not passes(run)]
    for run in failed:
        click.secho(f"failed: {' '.join(run)}", fg="red", err=True)
    sys.exit(1 if failed else 0)


def passes(run: list[str]) -> bool:
    click.secho(f"== {' '.join(run)}", bold=True)
    return subprocess.run([sys.executable, "-m", *run], cwd=SOURCE_ROOT).returncode == 0
