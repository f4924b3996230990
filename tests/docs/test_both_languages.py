"""Pages in English and Chinese have the same sections, tables and commands, and `ew` takes the commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from cli.app import main
from common.paths import SOURCE_ROOT

CHINESE = [SOURCE_ROOT / "README.zh-CN.md", *sorted((SOURCE_ROOT / "docs").rglob("*.zh-CN.md"))]
ENGLISH = [page.with_name(page.name.replace(".zh-CN", "")) for page in CHINESE]
PAIRS = [pytest.param(*pair, id=pair[0].name) for pair in zip(ENGLISH, CHINESE, strict=True)]


def lines_of(page: Path) -> list[str]:
    return page.read_text(encoding="utf-8").splitlines()


def outline(page: Path) -> list[str]:
    """The level of each heading, and one mark for each row of a table, in order."""
    marks = (re.match(r"#+ |\|", line) for line in lines_of(page))
    return [mark[0] for mark in marks if mark]


def commands(page: Path) -> list[str]:
    """Indented `ew` commands without their comments, which are in the page's language."""
    indented = [line.strip() for line in lines_of(page) if line.startswith("    ./ew ")]
    return [re.sub(r"\s+#.*", "", line) for line in indented]


def parse(command: click.Command, words: list[str]) -> None:
    """Read the words as `ew` would, without running anything; an unknown verb, option or value raises."""
    if isinstance(command, click.Group):
        chosen = command.get_command(click.Context(command), words[0])
        assert chosen is not None, words
        parse(chosen, words[1:])
    else:
        command.make_context(command.name or "ew", list(words))


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_sections_and_tables_are_the_same(english: Path, chinese: Path) -> None:
    assert outline(chinese) == outline(english)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_commands_are_the_same(english: Path, chinese: Path) -> None:
    assert commands(chinese) == commands(english)


@pytest.mark.parametrize("line", sorted({line for page in CHINESE for line in commands(page)}))
def test_every_command_is_one_that_ew_takes(line: str) -> None:
    # [brackets] are what may be left out, as in usage lines
    words = [word for word in shlex.split(line)[1:] if not word.startswith("[")]
    parse(main, words)
