"""The pages about conversion: generated ones are fresh, every error is explained, links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from cli.convert_trt import command as convert_command
from cli.plan import command as plan_command
from common.paths import SOURCE_ROOT
from scripts.convert_docs_zh import OPTIONS
from scripts.make_convert_docs import pages

DOCS = SOURCE_ROOT / "docs"
WRITTEN = [
    DOCS / f"{name}{suffix}.md"
    for name in (
        "convert",
        "troubleshooting",
        "operations",
        "api",
        "repository",
        "containers",
        "support-matrix",
    )
    for suffix in ("", ".zh-CN")
]
# what renders and lints repositories; its errors are explained with serving
RENDERING = ("migrate", "pbtxt", "render", "repository_")


def test_generated_pages_are_fresh() -> None:
    stale = [path.name for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python scripts/make_convert_docs.py"


def test_every_option_has_help_in_both_languages() -> None:
    options = [
        option
        for command in (convert_command, plan_command)
        for option in command.params
        if isinstance(option, click.Option)
    ]
    assert all(option.help for option in options)
    assert {option.opts[0] for option in options} == set(OPTIONS)


@pytest.mark.parametrize(("suffix", "off", "on"), [("", "off", "on"), (".zh-CN", "关", "开")])
def test_switches_are_off_unless_the_command_says_otherwise(suffix: str, off: str, on: str) -> None:
    text = (DOCS / "reference" / f"convert-trt{suffix}.md").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"^\| `(--[a-z-]+)`.*\| (\S+) \|$", text, re.MULTILINE))
    assert {name: defaults[name] for name in ("--force", "--allow-pickle", "--dry-run", "--resume")} == {
        "--force": off,
        "--allow-pickle": off,
        "--dry-run": off,
        "--resume": on,
    }


def _codes() -> set[str]:
    """Every error code that conversion can give: literal `code=` arguments in its modules."""
    modules = [
        path
        for path in (SOURCE_ROOT / "builder").rglob("*.py")
        if "lint" not in path.parts and not path.stem.startswith(RENDERING)
    ]
    found = set()
    for path in [*modules, SOURCE_ROOT / "common" / "tensors.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                constants = [
                    part for value in values for part in ast.walk(value) if isinstance(part, ast.Constant)
                ]
                found |= {part.value for part in constants if isinstance(part.value, str)}
    return found


@pytest.mark.parametrize("name", ["troubleshooting.md", "troubleshooting.zh-CN.md"])
def test_every_error_code_is_explained(name: str) -> None:
    explained = set(re.findall(r"`\[([a-z_]+)\]`", (DOCS / name).read_text(encoding="utf-8")))
    assert _codes() <= explained


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (page.parent / target).exists()] == []
