"""`ew demo`: from nothing to a streamed answer."""

from __future__ import annotations

import sys

import click

from cli.output import emit, json_option, report_errors
from cli.steps import Steps
from runtime import demo, teardown
from runtime.demo import Answer
from runtime.state import Service


@click.command("demo")
@click.option(
    "--model", help="Id in config.json, package, Hugging Face folder or hub id.  [default: SmolLM2-135M]"
)
@click.option("--prompt", default=demo.DEFAULT_PROMPT, show_default=True, help="What to ask.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port of the proxy."
)
@click.option("--once", is_flag=True, help="Stop the service afterwards.")
@json_option
@report_errors
def command(model: str | None, prompt: str, port: int, once: bool, as_json: bool) -> None:
    """Convert a small real model, render, serve and stream one answer. Steps already done are skipped.

    \b
    Examples:
      ./ew demo
      ./ew demo --once --prompt "What is the capital of France?"
    """
    with Steps() as steps:
        model_id = demo.ensure_model(model, steps)
        service = demo.ensure_service(model_id, port, steps)
    try:
        answer = _ask(service, model_id, prompt, as_json)
    finally:
        if once:
            _stop()
    emit(_document(service, model_id, answer), as_json=as_json)
    if not (as_json or once):
        _invite(service, model_id)


def _ask(service: Service, model_id: str, prompt: str, as_json: bool) -> Answer:
    """Stream the answer to stdout, piece by piece (to stderr when stdout carries JSON)."""
    click.secho(f"\n> {prompt}", bold=True, err=as_json)

    def show(text: str) -> None:
        click.echo(text, nl=False, err=as_json)
        (sys.stderr if as_json else sys.stdout).flush()

    answer = demo.ask(service, model_id, prompt, show)
    click.echo(err=as_json)
    click.secho(f"\n{_receipt(answer)}", dim=True, err=True)
    return answer


def _receipt(answer: Answer) -> str:
    return (
        f"{answer.tokens} tokens, first after {answer.ttft * 1000:.0f} ms, "
        f"{answer.tokens_per_second:.1f} tokens/s, {answer.finish_reason}"
    )


def _stop() -> None:
    with Steps() as steps:
        teardown.stop(progress=steps)


def _document(service: Service, model_id: str, answer: Answer) -> dict[str, object]:
    return {"model": model_id, "url": service.url, "ready_after": service.ready_after, **answer.as_dict()}


def _invite(service: Service, model_id: str) -> None:
    click.echo(f"\nThe service stays up at {service.url}. Ask it yourself:\n")
    click.echo(f"  {demo.curl_line(service, model_id)}\n")
    click.echo(f"The API key is in {service.key_file}. ./ew stop ends the service.")
