"""Checks of the base environment and of the engines' environments."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from runtime.doctor.catalog import found
from runtime.doctor.finding import Finding
from runtime.environments import base, registry


def check_environments() -> Iterator[Finding]:
    yield from _base()
    for environment in registry.all_environments():
        command = f"./ew setup --engine {environment.engine} --env {environment.name}"
        state, problem = registry.judge(environment)
        if state == "broken":
            yield found("environment_broken", problem, where=environment.name, command=command)
        elif state == "unfinished":
            yield found("environment_unfinished", problem, where=environment.name, command=command)


def facts() -> dict[str, Any]:
    """Versions in the base environment, and the state of the others."""
    return {
        "base": {"prefix": sys.prefix, "packages": base.packages()},
        "engines": [environment.as_dict() for environment in registry.all_environments()],
    }


def _base() -> Iterator[Finding]:
    for problem in base.problems():
        yield found("base_incomplete", problem, where=sys.prefix)
