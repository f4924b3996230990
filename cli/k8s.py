"""`ew k8s`: render and check Kubernetes manifests."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.output import emit, json_option, report_errors

if TYPE_CHECKING:
    from runtime.k8s.check import CheckResult
    from runtime.k8s.overlay import Rendered

OVERLAYS = ("cpu", "single-gpu", "multi-gpu", "multi-node", "pytorch")


@click.group("k8s")
def command() -> None:
    """Render Kubernetes manifests from deploy/config.json, and check them or any others.

    \b
    Examples:
      ./ew k8s render --output my-cluster --set source=Qwen/Qwen2.5-7B-Instruct --set gpu=L40S
      ./ew k8s check my-cluster
      kubectl apply -k my-cluster/overlays/single-gpu
    """


@command.command("render")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Instead of deploy/config.json."
)
@click.option("--overlay", type=click.Choice(OVERLAYS), help="Instead of the one that the config calls for.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value of the cluster; ./ew k8s values lists them.",
)
@click.option(
    "--values",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of NAME=VALUE lines; --set comes after.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for kubectl apply -k.  [default: YAML on stdout]",
)
@json_option
@report_errors
def render(
    config_path: Path | None,
    overlay: str | None,
    settings: tuple[str, ...],
    values: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Write manifests for the models of the config: a kustomize base and the overlay that fits.

    Without --output the built objects go to stdout, which needs kubectl.

    \b
    Examples:
      ./ew k8s render --set source=HuggingFaceTB/SmolLM2-135M-Instruct --output my-cluster
      ./ew k8s render --config qwen.json --values l40s-pool.txt | kubectl apply -f -
    """
    from common.config import load_config
    from common.paths import home
    from runtime.k8s.overlay import render_overlay
    from runtime.k8s.tree import write_tree
    from runtime.k8s.values import parse_values, read_values

    texts = (*(read_values(values) if values else ()), *settings)
    parsed = parse_values(texts)
    rendered = render_overlay(load_config(config_path or home().config), parsed, overlay)
    if parsed.gpu and not rendered.facts["gpu"]:
        click.echo(
            f"Note: gpu={parsed.gpu} has no use here: the models' engine is cpu; cuda-trt is one for GPUs.",
            err=True,
        )
    if output is None:
        _print_built(rendered, as_json)
        return
    written = write_tree(rendered, output)
    folder = output / "overlays" / rendered.pool.overlay
    facts = {**rendered.facts, "folder": str(folder), "files": [str(path) for path in written]}
    emit(facts, as_json=as_json, text=_summary(facts))


def _print_built(rendered: Rendered, as_json: bool) -> None:
    from runtime.k8s.build import kustomize
    from runtime.k8s.manifests import parse_manifests
    from runtime.k8s.tree import write_tree

    with tempfile.TemporaryDirectory(prefix="ew-k8s-") as folder:
        write_tree(rendered, Path(folder))
        text = kustomize(Path(folder) / "overlays" / rendered.pool.overlay)
    objects = list(parse_manifests(text, "the rendering").objects) if as_json else []
    emit({**rendered.facts, "objects": objects}, as_json=as_json, text=text.rstrip("\n"))


def _summary(facts: dict[str, Any]) -> str:
    rows = {
        "overlay": facts["overlay"],
        "image": facts["image"],
        "pods": f"{facts['replicas'][0]} to {facts['replicas'][1]} copies, {facts['memory']} of memory each"
        + (f", {facts['gpus_per_pod']} x {facts['gpu']}" if facts["gpu"] else ""),
        "time": f"{facts['load_seconds']} s to load, {facts['startup_seconds']} s allowed, "
        f"{facts['grace_seconds']} s to end in",
    }
    lines = [f"{name + ':':<9}{text}" for name, text in rows.items()]
    return "\n".join([*lines, f"Wrote {facts['folder']}. Next: ./ew k8s check {facts['folder']}"])


@command.command("values")
@json_option
@report_errors
def list_values(as_json: bool) -> None:
    """List the names that render --set takes.

    \b
    Example:
      ./ew k8s values
    """
    from runtime.k8s.values import set_names

    names = set_names()
    width = max(map(len, names)) + 2
    emit(names, as_json=as_json, text="\n".join(f"{name:<{width}}{text}" for name, text in names.items()))


@command.command("check")
@click.argument("places", nargs=-1, metavar="[PLACE]...")
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave a rule out; may be repeated.")
@json_option
@report_errors
def check(places: tuple[str, ...], ignore: tuple[str, ...], as_json: bool) -> None:
    """Build overlays, validate every object, and look for the usual mistakes. Exit code 1 if any.

    PLACE is a kustomize folder, a folder of them, a YAML file, or - for standard input; without one, the
    overlays in deploy/k8s.

    \b
    Examples:
      ./ew k8s check
      ./ew k8s check my-cluster/overlays/single-gpu
      helm template my-chart | ./ew k8s check - --ignore image
    """
    from runtime.k8s.check import check as run_check
    from runtime.k8s.overlay import TREE

    result = run_check(list(places) or [str(TREE)], ignore=frozenset(ignore))
    emit(result.as_dict(), as_json=as_json, text=_report(result))
    sys.exit(1 if result.failed else 0)


def _report(result: CheckResult) -> str:
    lines = []
    for report in result.reports:
        state = f"{len(report.findings)} findings" if report.findings else "ok"
        lines.append(f"{report.source}: {report.objects} objects, {state}")
        lines += [f"  {finding.object}: {finding.message} [{finding.rule}]" for finding in report.findings]
    return "\n".join([*lines, *(f"{name}: {done}" for name, done in result.checks.items())])
