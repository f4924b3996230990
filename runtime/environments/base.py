"""The base environment: the launcher makes it, it carries ew itself and the cpu engine, and has no record."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

from packaging.version import Version

NAME = "base"
NEEDED = ("nvidia-pytriton", "openvino-genai", "tokenizers", "uvicorn", "tritonclient")
SHOWN = (*NEEDED, "numpy", "openvino", "torch", "transformers")


def packages() -> dict[str, str | None]:
    """The versions that matter; None for what is not installed."""
    return {name: version(name) for name in SHOWN}


def problems() -> list[str]:
    """What keeps it from working."""
    missing = [name for name in NEEDED if version(name) is None]
    found = [f"missing: {', '.join(missing)}"] if missing else []
    numpy = version("numpy")
    if numpy is None or Version(numpy) >= Version("2"):
        found.append(f"numpy {numpy}; Triton's Python stub needs 1.x")
    return found


def as_dict() -> dict[str, Any]:
    """What `ew env show base` tells, with the keys of any other environment."""
    wrong = problems()
    return {
        "name": NAME,
        "engine": "cpu",
        "manager": "ew",
        "prefix": sys.prefix,
        "python": sys.version.split()[0],
        "packages": packages(),
        "state": "broken" if wrong else "ready",
        **({"problem": "; ".join(wrong)} if wrong else {}),
    }


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
