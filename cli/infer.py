"""`ew infer`: ask the running service once."""

from __future__ import annotations

import sys
from typing import Any

import click

from cli.asking import asking_options, sampling, show_piece
from cli.output import emit, json_option, report_errors
from common.errors import UsageError
from runtime import client
from runtime.asking import ask_streaming, ask_whole


@click.command("infer")
@click.argument("prompt", required=False)
@asking_options
@click.option("--stream/--no-stream", default=True, show_default=True, help="Show the answer as it comes.")
@click.option("--raw", is_flag=True, help="Send the prompt without the chat template.")
@json_option
@report_errors
def command(prompt: str | None, stream: bool, raw: bool, as_json: bool, **options: Any) -> None:
    """Ask the running service. Without PROMPT, or with -, the prompt is read from stdin.

    The answer goes to stdout, its receipt to stderr.

    \b
    Examples:
      ./ew infer "What is the capital of France?"
      ./ew infer --model qwen2.5-7b-trt --temperature 0.7 --no-stream "Write a haiku"
      cat letter.txt | ./ew infer --max-tokens 200 --json
    """
    endpoint = client.find_endpoint(options["url"], options["key_file"])
    body = {
        "modelId": client.choose_model(endpoint, options["model"]),
        **_input(_read(prompt), options["system"], raw),
        **sampling(options),
    }
    if stream and not as_json:
        answer = ask_streaming(endpoint, body, show_piece)
        click.echo()
    else:
        answer = ask_whole(endpoint, body)
        emit({"model": body["modelId"], **answer.as_dict()}, as_json=as_json, text=answer.text)
    click.secho(answer.receipt(), dim=True, err=True)


def _read(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise UsageError("There is no prompt.", hint='Give one: ./ew infer "Hello"')
    return sys.stdin.read()


def _input(prompt: str, system: str | None, raw: bool) -> dict[str, Any]:
    if system is None:
        return {"prompt": prompt, "raw": True} if raw else {"prompt": prompt}
    if raw:
        raise UsageError("--system does not go with --raw.", hint="Leave one of them out.")
    return {"messages": [{"role": "system", "content": system}, {"role": "user", "content": prompt}]}
