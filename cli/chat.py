"""`ew chat`: talk with the running service."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any

import click

from cli.asking import asking_options, sampling, show_piece
from cli.output import emit, json_option, report_errors
from common.errors import EwError
from runtime import client
from runtime.asking import ask_streaming
from runtime.client import Endpoint

HELP = "/reset begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer."
COMMAND = re.compile(r"/[\w?-]+")
Messages = list[dict[str, str]]


@click.command("chat")
@asking_options
@json_option
@report_errors
def command(as_json: bool, **options: Any) -> None:
    """Talk with a served model; the whole conversation is sent with every turn.

    /reset begins a new conversation, /exit or Ctrl-D ends, Ctrl-C stops the answer that is running. With
    --json the answers go to stderr, and one document with all turns to stdout at the end. A line that is one
    /word and none of these is not sent; //word sends /word, and so does a space before it.

    \b
    Examples:
      ./ew chat
      ./ew chat --model qwen2.5-7b-trt --system "You are terse." --temperature 0.7
      printf 'Hello\\nWho are you?\\n' | ./ew chat --json
    """
    endpoint = client.find_endpoint(options["url"], options["key_file"])
    model = client.choose_model(endpoint, options["model"])
    talk = Talk(endpoint, {"modelId": model, **sampling(options)}, _opening(options), as_json)
    click.secho(f"{model} at {endpoint.url}. {HELP}", dim=True, err=True)
    while (line := _read_turn()) is not None:
        if line in ("/exit", "/quit"):
            break
        if line == "/reset":
            talk.reset()
        elif COMMAND.fullmatch(line):
            click.secho(f"{line} is no command, and was not sent. {HELP} /{line} sends it.", err=True)
        elif prompt := _unescaped(line).strip():
            talk.turn(prompt)
    emit({"model": model, "turns": talk.turns}, as_json=as_json)


def _opening(options: dict[str, Any]) -> Messages:
    return [{"role": "system", "content": options["system"]}] if options["system"] else []


class Talk:
    """A conversation: what is sent with the next turn, and a record of every turn so far."""

    def __init__(self, endpoint: Endpoint, fixed: dict[str, Any], opening: Messages, as_json: bool) -> None:
        self._endpoint = endpoint
        self._fixed = fixed
        self._opening = opening
        self._messages = list(opening)
        self._as_json = as_json
        self.turns: list[dict[str, Any]] = []

    def reset(self) -> None:
        self._messages = list(self._opening)

    def turn(self, line: str) -> None:
        """Ask with the conversation so far; what came of the answer is kept, a failed turn is not."""
        asked = [*self._messages, {"role": "user", "content": line}]
        heard: list[str] = []

        def show(text: str) -> None:
            heard.append(text)
            show_piece(text, err=self._as_json)

        record: dict[str, Any] = {"prompt": line}
        self.turns.append(record)
        try:
            answer = ask_streaming(self._endpoint, {**self._fixed, "messages": asked}, show)
            click.echo(err=self._as_json)
            click.secho(answer.receipt(), dim=True, err=True)
            record.update(answer.as_dict())
        except KeyboardInterrupt:
            click.secho("\nstopped", dim=True, err=True)
            record.update({"text": "".join(heard), "finish_reason": "cancelled"})
        except EwError as error:
            click.secho(f"\nError: {error.what} {error.hint}".rstrip(), fg="red", err=True)
            record["error"] = error.as_dict()
            return
        self._messages = [*asked, {"role": "assistant", "content": "".join(heard)}]


def _unescaped(text: str) -> str:
    """What is sent: of //word, which is how a /word gets past the commands, the second slash on."""
    return text[1:] if COMMAND.fullmatch(text[1:]) and text.startswith("//") else text


def _read_turn() -> str | None:
    """The next line of the user, None at the end. Spaces before it say that it is no command."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip() if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    try:
        return input("> ").rstrip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        click.echo(err=True)
        return ""
