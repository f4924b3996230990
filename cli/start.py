"""`ew start`: bring up tritonserver and the proxy."""

from __future__ import annotations

from typing import Any

import click

from cli.output import emit, json_option, report_errors
from cli.steps import Steps
from runtime import foreground, lifecycle, teardown
from runtime.launch import Command
from runtime.launchers import LaunchPlan
from runtime.launchers.gpus import parse_gpus
from runtime.launchers.service import LaunchOptions
from runtime.lifecycle import StartRequest
from runtime.state import Service

ENGINES = ("cpu", "cuda-trt", "cuda-vllm", "cuda-hf")
LAUNCHERS = ("auto", "local", "pytriton", "docker")
PARALLEL = ("auto", "leader", "orchestrator", "llmapi")


@click.command("start")
@click.option(
    "--engine", type=click.Choice(ENGINES), default="cpu", show_default=True, help="What runs the models."
)
@click.option(
    "--model", "models", multiple=True, required=True, help="Id in deploy/config.json or a package folder."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address the proxy listens on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port of the proxy."
)
@click.option("--env", help="Environment made by ./ew setup  [the ready one of that engine]")
@click.option(
    "--launcher", type=click.Choice(LAUNCHERS), default="auto", show_default=True, help="Which tritonserver."
)
@click.option("--gpus", help="Indices as nvidia-smi shows them, such as 0,1  [those with most free memory]")
@click.option(
    "--parallel",
    type=click.Choice(PARALLEL),
    default="auto",
    show_default=True,
    help="How ranks are started.",
)
@click.option("--image", help="Container image for --launcher docker  [the one that fits the models]")
@click.option("--shm-size", default="2g", show_default=True, help="/dev/shm of the container.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=300.0, show_default=True, help="Seconds to get ready in."
)
@click.option(
    "--drain", type=click.FloatRange(0), default=25.0, show_default=True,
    help="Seconds that running streams may take when the service stops.",
)  # fmt: skip
@click.option(
    "--foreground", "stay", is_flag=True, help="Stay, show the logs, stop on a signal (for containers)."
)
@click.option("--dry-run", is_flag=True, help="Print the exact commands and start nothing.")
@click.argument("triton_options", nargs=-1, type=click.UNPROCESSED)
@json_option
@report_errors
def command(
    engine: Any,
    models: tuple[str, ...],
    host: str,
    port: int,
    timeout: float,
    drain: float,
    stay: bool,
    dry_run: bool,
    as_json: bool,
    gpus: str | None,
    **options: Any,
) -> None:
    """Start tritonserver and the proxy; ready when both answer. What follows -- goes to tritonserver.

    auto takes a tritonserver of this machine that has the engine (inside NGC containers), else that of
    nvidia-pytriton with the engine in its environment, else Docker with the image that fits the models.

    \b
    Examples:
      ./ew start --engine cuda-trt --env ew-trt --model qwen2.5-7b-trt --gpus 0,1
      ./ew start --engine cuda-vllm --model llama --launcher docker --dry-run
      ./ew start --engine cuda-trt --model m -- --log-verbose=1
      ./ew start --model smollm2-135m-trt
      ./ew start --model models/qwen --port 9000
      ./ew start --model smollm2-135m-trt --host 0.0.0.0 --foreground
    """
    launch = LaunchOptions(gpus=parse_gpus(gpus) if gpus else (), **options)
    request = StartRequest(models, engine, host, port, timeout, launch, drain)
    if dry_run:
        _show_commands(*lifecycle.plan(request), as_json)
        return
    if stay:
        foreground.run(
            lambda: _start(request, as_json),
            lambda log, line: _show_line(log, line, as_json),
            drain_seconds=drain + teardown.PROXY_CLOSE_SECONDS,
        )
    else:
        _start(request, as_json)


def _start(request: StartRequest, as_json: bool) -> Service:
    with Steps() as steps:
        service = lifecycle.start(request, progress=steps)
    emit(ready_document(service), as_json=as_json, text=ready_text(service))
    return service


def _show_line(log: str, line: str, as_json: bool) -> None:
    click.echo(f"{log:<6} | {line}", err=as_json)


def ready_document(service: Service) -> dict[str, Any]:
    """What `--json` prints for a service that came up."""
    return {
        "state": "ready",
        "url": service.url,
        "models": list(service.models),
        "seconds": service.ready_after,
        "key_file": service.key_file,
        "ports": dict(vars(service.ports)),
        "pids": {
            "triton": service.triton and service.triton.pid,
            "proxy": service.proxy and service.proxy.pid,
        },
    }


def ready_text(service: Service) -> str:
    return (
        f"Serving {', '.join(service.models)} at {service.url} (ready in {service.ready_after:.1f} s).\n"
        f"The API key is in {service.key_file}; ./ew stop ends the service."
    )


def _show_commands(plan: LaunchPlan, commands: list[Command], as_json: bool) -> None:
    parts = [
        f"# launcher: {plan.launcher} ({plan.reason})",
        *(f"# warning: {text}" for text in plan.warnings),
    ]
    parts += [f"# {item.name}, log: {item.log}\n{item}" for item in commands]
    document = {**plan.as_dict(), "commands": [item.as_dict() for item in commands]}
    emit(document, as_json=as_json, text="\n\n".join(parts))
