"""How every verb talks: colours on a terminal, plain text in a pipe, one JSON document with --json."""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from common.errors import EwError

Command = TypeVar("Command", bound=Callable[..., Any])


def prepare_streams() -> None:
    """Make no verb fail for a character: what a terminal's encoding lacks is shown as "?", and bytes on stdin
    that are no text in it are refused where they are used. UTF-8 lacks only the bytes of a file name that is
    no text; they are shown as `\\udcc4`, which is also how JSON writes them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower() == "utf-8"
            stream.reconfigure(errors="backslashreplace" if utf8 else "replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def json_option(command: Command) -> Command:
    """Add `--json`: one document on stdout, all prose on stderr."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(command)


def say(text: str = "", *, as_json: bool = False) -> None:
    """Prose for people: stdout, or stderr when stdout carries JSON."""
    click.echo(text, err=as_json)


def emit(document: Any, *, as_json: bool, text: str | None = None) -> None:
    """The result of a verb: the document with --json, else `text` (nothing when None)."""
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
    elif text is not None:
        click.echo(text)


def report_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an EwError into its message and exit code; with --json also into a document on stdout."""

    @functools.wraps(command)
    def wrapper(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except EwError as error:
            show_error(error, as_json=bool(options.get("as_json")))
            sys.exit(error.exit_code)

    return wrapper


def show_error(error: EwError, *, as_json: bool) -> None:
    """what, why, hint: three lines on stderr, or `{"error": ...}` on stdout with --json."""
    if as_json:
        click.echo(json.dumps({"error": error.as_dict()}, ensure_ascii=False, indent=2))
        return
    click.secho(f"Error: {error.what}", fg="red", err=True)
    if error.why:
        click.echo(f"  why: {error.why}", err=True)
    if error.hint:
        click.secho(f"  next: {error.hint}", fg="yellow", err=True)
