"""`ew start`: bring up tritonserver and the proxy."""

from __future__ import annotations

from typing import Any, get_args

import click

from cli.output import emit, json_option, report_errors
from cli.steps import Steps
from common.config import Engine
from runtime import foreground, lifecycle, teardown
from runtime.bringup import Draft
from runtime.launchers import LaunchPlan
from runtime.launchers.gpus import parse_gpus
from runtime.launchers.service import LaunchOptions
from runtime.lifecycle import StartRequest
from runtime.state import Server, Service

ENGINES = get_args(Engine)
LAUNCHERS = ("auto", "local", "pytriton", "docker")
PARALLEL = ("auto", "leader", "orchestrator", "llmapi")
SERVICE_OPTIONS = ("engine", "host", "port", "timeout", "drain", "lame_duck")


@click.command("start")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="What runs the models  [as deploy/config.json says; cpu for a package folder]",
)
@click.option(
    "--model", "models", multiple=True, required=True, help="Id in deploy/config.json or a package folder."
)
@click.option("--host", help="Address the proxy listens on  [that of the running service, or 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Port of the proxy  [that of the running service, or 8080]",
)
@click.option(
    "--env",
    "envs",
    multiple=True,
    help="Environment made by ./ew setup; one for each engine  [the ready one of that engine]",
)
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
    "--lame-duck", type=click.FloatRange(0), default=0.0, show_default=True,
    help="Seconds of the drain, half of it at most, in which each open connection may bring one more request;"
    " for services of several copies behind a balancer of connections.",
)  # fmt: skip
@click.option(
    "--foreground", "stay", is_flag=True, help="Stay, show the logs, stop on a signal (for containers)."
)
@click.option("--dry-run", is_flag=True, help="Print the exact commands and start nothing.")
@click.argument("triton_options", nargs=-1, type=click.UNPROCESSED)
@json_option
@report_errors
def command(
    models: tuple[str, ...],
    envs: tuple[str, ...],
    stay: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Start tritonserver and the proxy; ready when both answer. What follows -- goes to tritonserver.

    While a service runs, start adds to it: another tritonserver behind the same proxy port, for models of
    another engine or environment. Models of several engines in one start get a tritonserver each.

    auto takes a tritonserver of this machine that has the engine (inside NGC containers), else that of
    nvidia-pytriton with the engine in its environment, else Docker with the image that fits the models.

    \b
    Examples:
      ./ew start --engine cuda-trt --env ew-trt --model qwen2.5-7b-trt --gpus 0,1
      ./ew start --engine cuda-vllm --env ew-vllm --model llama     # beside it, on the same port
      ./ew start --engine cuda-vllm --model llama --launcher docker --dry-run
      ./ew start --engine cuda-trt --model m -- --log-verbose=1
      ./ew start --model smollm2-135m-trt
      ./ew start --model models/qwen --port 9000
      ./ew start --model smollm2-135m-trt --host 0.0.0.0 --foreground
    """
    request = _request(models, envs, options)
    if dry_run:
        _show_commands(lifecycle.plan(request), as_json)
        return
    if stay:
        foreground.run(
            lambda: _start(request, as_json),
            lambda log, line: _show_line(log, line, as_json),
            drain_seconds=request.drain + teardown.PROXY_CLOSE_SECONDS,
        )
    else:
        _start(request, as_json)


def _request(models: tuple[str, ...], envs: tuple[str, ...], options: dict[str, Any]) -> StartRequest:
    gpus = options.pop("gpus")
    service = {name: options.pop(name) for name in SERVICE_OPTIONS}
    launch = LaunchOptions(gpus=parse_gpus(gpus) if gpus else (), **options)
    return StartRequest(models, envs=envs, launch=launch, **service)


def _start(request: StartRequest, as_json: bool) -> Service:
    with Steps() as steps:
        service = lifecycle.start(request, progress=steps)
    emit(ready_document(service), as_json=as_json, text=ready_text(service))
    return service


def _show_line(log: str, line: str, as_json: bool) -> None:
    click.echo(f"{log:<6} | {line}", err=as_json)


def ready_document(service: Service) -> dict[str, Any]:
    """What `--json` prints for a service that came up; `ports` and `pids` are the first server's."""
    first = service.servers[0].process
    return {
        "state": "ready",
        "url": service.url,
        "models": list(service.models),
        "seconds": service.servers[-1].ready_after,
        "key_file": service.key_file,
        "servers": [_server(server) for server in service.servers],
        "ports": dict(vars(service.ports)),
        "pids": {"triton": first and first.pid, "proxy": service.proxy and service.proxy.pid},
    }


def _server(server: Server) -> dict[str, Any]:
    return {
        "engine": server.engine,
        "env": server.env,
        "models": list(server.models),
        "launcher": server.launcher,
        "pid": server.process and server.process.pid,
        "ports": dict(vars(server.ports)),
    }


def ready_text(service: Service) -> str:
    seconds = service.servers[-1].ready_after or 0.0
    return (
        f"Serving {', '.join(service.models)} at {service.url} (ready in {seconds:.1f} s).\n"
        f"The API key is in {service.key_file}; ./ew stop ends the service."
    )


def _show_commands(draft: Draft, as_json: bool) -> None:
    servers = [_planned(server, draft.plans[server.server_id]) for server in draft.new_servers]
    parts = []
    for planned in servers:
        launcher = f"{planned['launcher']} ({planned['reason']})"
        parts.append(f"# {planned['engine']}: {', '.join(planned['models'])}\n# launcher: {launcher}")
        parts += [f"# warning: {text}" for text in planned["warnings"]]
    commands = draft.commands()
    parts += [f"# {item.name}, log: {item.log}\n{item}" for item in commands]
    document = {"servers": servers, "commands": [item.as_dict() for item in commands]}
    emit(document, as_json=as_json, text="\n\n".join(parts) or "# all of it runs already")


def _planned(server: Server, plan: LaunchPlan) -> dict[str, Any]:
    names = {"engine": server.engine, "env": server.env, "models": list(server.models)}
    return {**names, **plan.as_dict()}
