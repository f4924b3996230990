"""Checks of the base environment and of the engines' environments."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from typing import Any

from packaging.version import Version

from runtime.doctor.catalog import found
from runtime.doctor.finding import Finding
from runtime.environments import registry

NEEDED = ("nvidia-pytriton", "openvino-genai", "tokenizers", "uvicorn", "tritonclient")
SHOWN = (*NEEDED, "numpy", "openvino", "torch", "transformers")


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
        "base": {"prefix": sys.prefix, "packages": {name: version(name) for name in SHOWN}},
        "engines": [environment.as_dict() for environment in registry.all_environments()],
    }


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _base() -> Iterator[Finding]:
    missing = [name for name in NEEDED if version(name) is None]
    if missing:
        yield found("base_incomplete", f"missing: {', '.join(missing)}", where=sys.prefix)
    numpy = version("numpy")
    if numpy is None or Version(numpy) >= Version("2"):
        yield found("base_incomplete", f"numpy {numpy}; Triton's Python stub needs 1.x", where=sys.prefix)
