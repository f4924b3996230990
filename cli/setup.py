"""`ew setup`: make, complete or repair an engine's environment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

from cli.output import emit, json_option, report_errors, say
from common.config import Engine
from common.errors import EnvironmentProblem
from runtime import nvidia, pythons
from runtime.environments.checks import Problem, check
from runtime.environments.choose import SetupOptions, request_for
from runtime.environments.plan import SetupPlan, plan_setup, shown
from runtime.environments.setup import set_up

MANAGERS = ("auto", "conda", "mamba", "micromamba", "venv", "container")


@click.command("setup")
@click.option(
    "--engine",
    type=click.Choice(get_args(Engine)),
    default="cpu",
    show_default=True,
    help="The engine to set up.",
)
@click.option(
    "--env", "name", help="Name of the environment [ew-trt, ew-vllm, ew-hf; cpu: the base environment]."
)
@click.option(
    "--manager", type=click.Choice(MANAGERS), default="auto", show_default=True, help="What makes it."
)
@click.option("--python", help="Python version, or an interpreter for venv [3.12].")
@click.option(
    "--version", help="Release of tensorrt_llm, vllm or transformers [the newest known stable one]."
)
@click.option(
    "--find-links", type=click.Path(path_type=Path), help="Install offline from this folder of wheels."
)
@click.option("--force", is_flag=True, help="Go on although a check of the machine failed.")
@click.option("--dry-run", is_flag=True, help="Print every command, run none.")
@json_option
@report_errors
def command(force: bool, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Make or repair an engine's environment; environments stand side by side.

    auto uses conda, mamba or micromamba where there is one (an environment of that name), else a virtual
    environment; inside an NGC container that has the engine, its own Python. An interrupted setup goes on
    where it stopped; a broken environment is made anew.

    \b
    Examples:
      ./ew setup --engine cpu
      ./ew setup --engine cuda-trt --env ew-trt
      ./ew setup --engine cuda-vllm --env ew-vllm --manager venv --dry-run
      ./ew setup --engine cuda-trt --find-links ./wheels
      ./ew setup --engine cuda-trt --manager container
    """
    if options["engine"] == "cpu" and not options["name"]:
        return base_environment(as_json=as_json)
    plan = plan_setup(request_for(SetupOptions(**options)))
    problems = check(plan.request, nvidia.inspect())
    show_problems(problems, as_json=as_json)
    if dry_run:
        return emit(
            as_document(plan, problems),
            as_json=as_json,
            text="\n".join(shown(plan.steps)) or "# nothing to do",
        )
    refuse(problems, force=force)
    environment = set_up(plan, progress=lambda text: say(text, as_json=as_json))
    where = environment.image or environment.prefix
    text = f"The {environment.engine} environment {environment.name} is ready: {where}"
    return emit(environment.as_dict(), as_json=as_json, text=text)


def base_environment(*, as_json: bool) -> None:
    """The launcher makes the base environment before any verb runs, so by now it is there; this checks it."""
    python = pythons.inspect_python(sys.executable)
    if python is None or not python.library:
        version = (sys.version_info[0], sys.version_info[1])
        raise EnvironmentProblem(
            f"{pythons.library_name(version)}, which Triton's Python backend needs, is not on this machine.",
            hint=f"Install {pythons.library_package(version)}, then run the same command again.",
            code="libpython_missing",
        )
    facts = {"engine": "cpu", "environment": sys.prefix, "python": sys.version.split()[0], "ready": True}
    emit(facts, as_json=as_json, text=f"The cpu environment is ready: {python.name}")


def show_problems(problems: list[Problem], *, as_json: bool) -> None:
    for problem in problems:
        colour = "red" if problem.severity == "error" else "yellow"
        say(
            click.style(f"{problem.severity}: {problem.what} {problem.hint}".rstrip(), fg=colour),
            as_json=True,
        )


def refuse(problems: list[Problem], *, force: bool) -> None:
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors and not force:
        raise EnvironmentProblem(
            "This machine cannot run that engine.",
            why=" ".join(problem.what for problem in errors),
            hint=f"{errors[0].hint} To set up all the same: --force".strip(),
            code=f"check_{errors[0].id}",
        )


def as_document(plan: SetupPlan, problems: list[Problem]) -> dict[str, Any]:
    request = plan.request
    return {
        "engine": request.engine,
        "environment": request.name,
        "manager": request.manager,
        "version": request.release.version if request.release else None,
        "image": request.image or None,
        "pins": plan.pins,
        "problems": [problem.as_dict() for problem in problems],
        "commands": [step.as_dict() for step in plan.steps],
    }
