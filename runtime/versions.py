"""Which release of an engine an environment has."""

from __future__ import annotations

import importlib.metadata

from runtime.environments import registry
from runtime.environments.releases import DISTRIBUTIONS

BASE = {"cpu": "openvino-genai"}


def of_engine(engine: str, env: str | None) -> str | None:
    """As recorded when the environment was set up, else as installed in the base one; None if not known."""
    distribution = {**BASE, **DISTRIBUTIONS}.get(engine, "")
    environment = registry.find(env) if env else None
    if environment is not None:
        return environment.packages.get(distribution) or environment.version or None
    if engine not in BASE:
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
