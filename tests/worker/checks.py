"""Checks of engines that the tests' own Python does not have: run in the engine's, told as lines of JSON."""

from __future__ import annotations

import ast
import json
from pathlib import Path


def names_of_checks(module: str) -> list[str]:
    """CHECKS of a module beside this one, which cannot be imported without its engine."""
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    [value] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHECKS"
    ]
    return list(ast.literal_eval(value))


def problems_told(output: str) -> dict[str, str]:
    """Check -> its problem, or nothing, out of the lines that a module of checks has printed."""
    told = [json.loads(line.partition("CHECK ")[2]) for line in output.splitlines() if "CHECK " in line]
    return {found["name"]: found["problem"] for found in told}
