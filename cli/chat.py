"""`ew chat`: talk with the running service."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from cli.asking import asking_options, sampling, show_piece
from cli.output import report_errors
from common.errors import EwError
from runtime import client
from runtime.asking import ask_streaming
from runtime.client import Endpoint

HELP = "/reset begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer."
Messages = list[dict[str, str]]


@click.command("chat")
@asking_options
@report_errors
def command(**options: Any) -> None:
    """Talk with a served model; the whole conversation is sent with every turn.

    /reset begins a new conversation, /exit or Ctrl-D ends, Ctrl-C stops the answer that is running.

    \b
    Examples:
      ./ew chat
      ./ew chat --model qwen2.5-7b-trt --system "You are terse." --temperature 0.7
    """
    endpoint = client.find_endpoint(options["url"], options["key_file"])
    model = client.choose_model(endpoint, options["model"])
    fixed = {"modelId": model, **sampling(options)}
    opening: Messages = [{"role": "system", "content": options["system"]}] if options["system"] else []
    click.secho(f"{model} at {endpoint.url}. {HELP}", dim=True, err=True)
    messages = list(opening)
    while (line := _read_turn()) is not None:
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            messages = list(opening)
        elif line:
            messages = _turn(endpoint, fixed, messages, line)


def _turn(endpoint: Endpoint, fixed: dict[str, Any], messages: Messages, line: str) -> Messages:
    """Ask with the conversation so far; what came of the answer is kept, a failed turn is not."""
    asked = [*messages, {"role": "user", "content": line}]
    heard: list[str] = []

    def show(text: str) -> None:
        heard.append(text)
        show_piece(text)

    try:
        answer = ask_streaming(endpoint, {**fixed, "messages": asked}, show)
        click.echo()
        click.secho(answer.receipt(), dim=True, err=True)
    except KeyboardInterrupt:
        click.secho("\nstopped", dim=True, err=True)
    except EwError as error:
        click.secho(f"\nError: {error.what} {error.hint}".rstrip(), fg="red", err=True)
        return messages
    return [*asked, {"role": "assistant", "content": "".join(heard)}]


def _read_turn() -> str | None:
    """The next line of the user, None at the end."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    try:
        return input("> ").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        click.echo(err=True)
        return ""
