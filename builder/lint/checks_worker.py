"""Checks of 1/worker.json, which tells ew's bridge what to start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from builder.lint.repository import Model, Repository, line_of
from builder.lint.rules import RULES, Finding
from common.config import Engine

NAME = "worker.json"


def check_worker(model: Model, repository: Repository) -> Iterator[Finding]:
    for folder in model.served:
        if (folder / NAME).is_file():
            yield from _worker_file(model, folder / NAME, repository)


def _worker_file(model: Model, path: Path, repository: Repository) -> Iterator[Finding]:
    file = model.name_of(path)
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
    except (OSError, ValueError) as error:
        yield Finding(RULES["EW601"], file, getattr(error, "lineno", 1), f"not readable: {error}")
        return
    yield from _content(document, text, file)
    if repository.options.check_paths and isinstance(document, dict):
        yield from _paths(document, text, file, path.parent)


def _content(document: Any, text: str, file: str) -> Iterator[Finding]:
    if not isinstance(document, dict):
        yield Finding(RULES["EW601"], file, 1, "it is no JSON object")
        return
    if document.get("engine") not in get_args(Engine):
        message = f"engine is {document.get('engine')!r}, allowed are {', '.join(get_args(Engine))}"
        yield Finding(RULES["EW601"], file, line_of(text, "engine"), message)
    for key, value in (document.get("options") or {}).items():
        if key.startswith("max_") and (not isinstance(value, int) or value < 1):
            message = f"{key} is {value!r}, allowed is a whole number of 1 or more"
            yield Finding(RULES["EW601"], file, line_of(text, key), message)


def _paths(document: dict[str, Any], text: str, file: str, folder: Path) -> Iterator[Finding]:
    for key, needed in (("package", "ew.json"), ("root", "worker/__main__.py")):
        given = document.get(key)
        if isinstance(given, str) and not (folder / given / needed).is_file():
            message = f"there is no {needed} in {key} {given}"
            yield Finding(RULES["EW602"], file, line_of(text, key), message)
