"""`ew stop`: drain and end the service."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.output import emit, json_option, report_errors
from cli.start import ENGINES
from cli.steps import Steps
from common.config import Engine
from common.errors import UsageError
from runtime import loading, teardown
from runtime.loading import LoadReport
from runtime.teardown import StopReport

drain_option = click.option(
    "--drain",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that running streams may take.",
)


@click.command("stop")
@drain_option
@click.option("--model", help="Unload only this model; ./ew start --model loads it again.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="Stop only the tritonservers of this engine; others serve on.",
)
@click.option("--env", help="Stop only the tritonserver of this environment.")
@json_option
@report_errors
def command(drain: float, model: str | None, engine: Engine | None, env: str | None, as_json: bool) -> None:
    """Drain and stop the service; afterwards no process, port or shared memory of it is left.

    With the last tritonserver the proxy ends, too.

    \b
    Examples:
      ./ew stop
      ./ew stop --engine cuda-vllm
      ./ew stop --model smollm2-135m-trt
    """
    if model and (engine or env):
        raise UsageError("--model does not go with --engine or --env.", hint="Leave one out.")
    if model:
        _unload(model, drain, as_json)
        return
    with Steps() as steps:
        report = teardown.stop(drain_seconds=drain, progress=steps, engine=engine, env=env)
    emit(asdict(report), as_json=as_json, text=_text(report))


def _unload(model: str, drain: float, as_json: bool) -> None:
    with Steps() as steps:
        steps(f"unloading {model}")
        report = loading.unload(model, drain)
    emit(asdict(report), as_json=as_json, text=_unloaded_text(report))


def _unloaded_text(report: LoadReport) -> str:
    """Sizes that could not be read are left out. A worker of another user may not be seen at all."""
    if not report.workers:
        return f"{report.model} is unloaded; no worker of it was seen."
    sizes = {"": report.memory_freed, " of GPU memory": report.gpu_memory_freed}
    freed = " and ".join(f"{size / 2**20:.0f} MiB{kind}" for kind, size in sizes.items() if size)
    return f"Unloaded {report.model}; its worker ended" + (f" and gave back {freed}." if freed else ".")


def _text(report: StopReport) -> str:
    if not report.was_running:
        return "Nothing was running."
    killed = f"; {report.killed} processes had to be killed" if report.killed else ""
    return f"Stopped {', '.join(report.models)} in {report.seconds:.1f} s{killed}."
