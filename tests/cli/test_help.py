"""The help of every verb and subcommand has examples, and their words are ones that it takes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest

from cli.app import VERBS, main
from tests.cli.ew import ew

TAKES_FOREIGN_OPTIONS = ("convert-trt", "test")


def commands() -> Iterator[tuple[str, ...]]:
    for verb in VERBS:
        command = main.get_command(click.Context(main), verb)
        yield (verb,)
        if isinstance(command, click.Group):
            yield from ((verb, name) for name in command.commands)


def examples(path: tuple[str, ...]) -> list[str]:
    """The lines of the help from the word Example on, up to the options."""
    text = ew(*path, "--help").out
    assert "  Example" in text, path
    lines = text[text.index("  Example") :].split("\n\n")[0].splitlines()[1:]
    assert all(line.startswith("    ") for line in lines), text
    return [line.strip() for line in lines]


def words_for_ew(line: str) -> list[str]:
    """What `./ew` gets in a command line with pipes, and its verb."""
    words = shlex.split(line, comments=True)
    if "./ew" not in words:
        return []
    rest = words[words.index("./ew") + 1 :]
    return rest[: rest.index("|")] if "|" in rest else rest


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_examples_are_there_and_name_options_that_exist(path: tuple[str, ...]) -> None:
    lines = examples(path)
    assert any(words_for_ew(line)[: len(path)] == list(path) for line in lines)
    for words in map(words_for_ew, lines):
        if words and words[0] not in TAKES_FOREIGN_OPTIONS:
            assert given_options(words) <= known_options(words), words


def given_options(words: list[str]) -> set[str]:
    own = words[: words.index("--")] if "--" in words else words
    return {word.split("=")[0] for word in own if word.startswith("-") and word != "-"}


def known_options(words: list[str]) -> set[str]:
    command = main.get_command(click.Context(main), words[0])
    if isinstance(command, click.Group):
        command = command.commands[words[1]]
    assert command is not None
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
