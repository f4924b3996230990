"""`ew env`: the engines' environments."""

from __future__ import annotations

from typing import Any

import click

from cli.output import emit, json_option, report_errors, say
from runtime.environments import base, registry
from runtime.environments.registry import Environment


@click.group("env")
def command() -> None:
    """List, show and remove the engines' environments.

    \b
    Examples:
      ./ew env list
      ./ew env show ew-trt
      ./ew env remove ew-vllm
    """


@command.command("list")
@json_option
@report_errors
def list_(as_json: bool) -> None:
    """All environments and whether they can be used.

    \b
    Example:
      ./ew env list
    """
    found = registry.all_environments()
    lines = [line(environment) for environment in found] or ["No environments but the base one."]
    emit([environment.as_dict() for environment in found], as_json=as_json, text="\n".join(lines))


@command.command("show")
@click.argument("name")
@json_option
@report_errors
def show(name: str, as_json: bool) -> None:
    """One environment: where it is, what is in it, what is wrong with it. base is ew's own.

    \b
    Examples:
      ./ew env show base
      ./ew env show ew-trt
    """
    document = _document(name)
    shown = [
        f"{key}: {value}" for key, value in document.items() if value and key not in ("packages", "digest")
    ]
    packages = [f"  {package} {version}" for package, version in document["packages"].items() if version]
    emit(document, as_json=as_json, text="\n".join([*shown, *packages]))


def _document(name: str) -> dict[str, Any]:
    if name == base.NAME and registry.find(name) is None:
        return base.as_dict()
    environment = registry.get(name)
    return {**environment.as_dict(), "bytes": registry.size(environment)}


@command.command("remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@report_errors
def remove(name: str, yes: bool, as_json: bool) -> None:
    """Remove an environment from the disk; a container's image and a system Python stay.

    \b
    Example:
      ./ew env remove ew-vllm
    """
    environment = registry.get(name)
    if not yes and not as_json:
        click.confirm(f"Remove the {environment.engine} environment {name}?", abort=True)
    ran = registry.remove(environment)
    if ran:
        say(" ".join(ran), as_json=as_json)
    emit({"removed": name, "command": ran}, as_json=as_json, text=f"Removed {name}.")


def line(environment: Environment) -> str:
    state, problem = registry.judge(environment)
    version = environment.version or "locked"
    kind = f"{environment.engine} {version} ({environment.manager})"
    return f"{environment.name:<20} {kind:<36} {state:<10} {problem}".rstrip()
