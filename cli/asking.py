"""Options that infer and chat share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--model", help="Model id  [the only one served]"),
    click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate."),
    click.option("--temperature", type=click.FloatRange(0, 10), help="0 is greedy."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Nucleus sampling."),
    click.option("--top-k", type=click.IntRange(min=0), help="0 is all."),
    click.option("--seed", type=click.IntRange(min=0), help="Same seed, same sample."),
    click.option("--stop", multiple=True, help="End before this text; may be given several times."),
    click.option("--system", help="System message."),
    click.option("--url", help="Another service than the one that runs here."),
    click.option(
        "--key-file", type=click.Path(path_type=Path), help="File with the API key  [or EW_API_KEY]"
    ),
)
_NAMES = {
    "max_tokens": "maxTokens",
    "top_p": "topP",
    "top_k": "topK",
    "temperature": "temperature",
    "seed": "seed",
}


def asking_options(command: Command) -> Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def sampling(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request body that were given."""
    given = {field: options[name] for name, field in _NAMES.items() if options.get(name) is not None}
    return {**given, **({"stop": list(options["stop"])} if options.get("stop") else {})}


def show_piece(text: str, *, err: bool = False) -> None:
    """A piece of a stream, at once."""
    click.echo(text, nl=False, err=err)
    (sys.stderr if err else sys.stdout).flush()
