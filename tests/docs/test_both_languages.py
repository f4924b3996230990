"""Pages in both languages have the same sections, tables, commands, figures and links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from builder.lint.rules import RULES
from cli.app import main
from common.paths import SOURCE_ROOT
from runtime.doctor.catalog import CATALOG
from runtime.doctor.logbook import signatures
from scripts.chinese import read_texts

DOCS = SOURCE_ROOT / "docs"
CHINESE = [SOURCE_ROOT / "README.zh-CN.md", *sorted(DOCS.rglob("*.zh-CN.md"))]
ENGLISH = [page.with_name(page.name.replace(".zh-CN", "")) for page in CHINESE]
PAIRS = [pytest.param(*pair, id=pair[0].name) for pair in zip(ENGLISH, CHINESE, strict=True)]
# for who changes ew, not for who runs it
ENGLISH_ONLY = {"structure.md", "performance.md"}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def outline(page: Path) -> list[str]:
    """The level of each heading, and one mark for each row of a table, in order."""
    marks = (re.match(r"#+ |\|", line) for line in text_of(page).splitlines())
    return [mark[0] for mark in marks if mark]


def code_lines(page: Path) -> list[str]:
    """Lines of code blocks without their comments, which are in the page's language."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    return [bare for line in lines if (bare := re.sub(r"(^|\s+)#.*", "", line))]


def commands(page: Path) -> list[str]:
    """Indented `ew` commands without their comments."""
    indented = [line.strip() for line in text_of(page).splitlines() if line.startswith("    ./ew ")]
    return [re.sub(r"\s+#.*", "", line) for line in indented]


def figures(page: Path) -> set[str]:
    """Numbers of two digits or more; a single digit may be a word in the other language."""
    return set(re.findall(r"(?<![\w.])\d[\d,.]*\d", text_of(page)))


def parse(command: click.Command, words: list[str]) -> None:
    """Read the words as `ew` would, without running anything; an unknown verb, option or value raises."""
    if isinstance(command, click.Group):
        chosen = command.get_command(click.Context(command), words[0])
        assert chosen is not None, words
        parse(chosen, words[1:])
    else:
        command.make_context(command.name or "ew", list(words))


def links(page: Path) -> list[str]:
    """Targets of links to files, in order."""
    return [target for target in re.findall(r"\]\(([^)#\s]+)", text_of(page)) if "://" not in target]


def test_every_page_for_users_is_there_in_chinese() -> None:
    pages = {page for page in DOCS.rglob("*.md") if ".zh-CN" not in page.name}
    assert {page.name for page in pages - set(ENGLISH)} == ENGLISH_ONLY


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_sections_and_tables_are_the_same(english: Path, chinese: Path) -> None:
    assert outline(chinese) == outline(english)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_commands_and_code_are_the_same(english: Path, chinese: Path) -> None:
    assert commands(chinese) == commands(english)
    assert code_lines(chinese) == code_lines(english)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_figures_are_the_same(english: Path, chinese: Path) -> None:
    assert figures(chinese) == figures(english)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_pages_link_to_each_other_and_otherwise_stay_in_their_language(english: Path, chinese: Path) -> None:
    assert chinese.name in links(english)
    others = [target for target in links(chinese) if target.endswith(".md") and ".zh-CN" not in target]
    twins = [target for target in others if (chinese.parent / target.replace(".md", ".zh-CN.md")).exists()]
    assert twins == [english.name]
    assert [target for target in links(chinese) if not (chinese.parent / target).exists()] == []


@pytest.mark.parametrize("line", sorted({line for page in CHINESE for line in commands(page)}))
def test_every_command_is_one_that_ew_takes(line: str) -> None:
    # [brackets] are what may be left out, as in usage lines
    words = [word for word in shlex.split(line)[1:] if not word.startswith("[")]
    parse(main, words)


def test_no_chinese_text_outlives_its_english() -> None:
    findings = {text for entry in CATALOG.values() for text in (entry.title, entry.cause, entry.fix)}
    findings |= {text for line in signatures() for text in (line.cause, line.fix)}
    findings |= {entry.area.capitalize() for entry in CATALOG.values()}
    findings |= {"error", "warning", "info", "consequence"}
    rules = {text for rule in RULES.values() for text in (rule.severity, rule.title, rule.why, rule.cure)}
    assert set(read_texts("doctor_docs_zh.json").chinese) == findings
    assert set(read_texts("lint_docs_zh.json").chinese) == rules


def test_a_text_without_chinese_is_named() -> None:
    with pytest.raises(LookupError, match="lint_docs_zh.json has no Chinese for: Nothing of the kind"):
        read_texts("lint_docs_zh.json")("Nothing of the kind")
