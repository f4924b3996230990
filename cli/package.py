"""`ew package`: show, list and verify packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from builder.compat import container_for
from builder.gpus import detect_gpus, gpu_by_name
from builder.manifest import MANIFEST_NAME
from builder.package import Package, ServerVersions, find_packages, load_package
from cli.output import emit, json_option, report_errors
from cli.progress import progress_display
from cli.sizes import shown_bytes
from common.paths import home


@click.group("package")
def command() -> None:
    """Show, list and verify packages made by convert-trt.

    \b
    Examples:
      ./ew package verify models/qwen
      ./ew package list
    """


@command.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
@report_errors
def verify(folder: Path, as_json: bool) -> None:
    """Check the digest of every file. Exit code 4 when one is missing, changed or added.

    \b
    Example:
      ./ew package verify models/qwen
    """
    package = load_package(folder)
    with progress_display(quiet=as_json) as progress:
        package.verify(progress=lambda done, total: progress("verifying", done, total))
    facts = {
        "package": str(folder),
        "valid": True,
        "files": len(package.manifest.files),
        "bytes": package.bytes,
    }
    text = f"{folder} is whole: {facts['files']} files, {shown_bytes(package.bytes)}."
    emit(facts, as_json=as_json, text=text)


@command.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--trtllm-version", required=True, help="TensorRT-LLM of the server.")
@click.option("--tensorrt", help="TensorRT of the server.  [default: that of its container]")
@click.option("--gpu", help="GPU type of the server, for example L40S.  [default: the one in this machine]")
@json_option
@report_errors
def check(folder: Path, trtllm_version: str, tensorrt: str | None, gpu: str | None, as_json: bool) -> None:
    """Would a server load this package? Exit code 4 if not, with the container that would.

    \b
    Example:
      ./ew package check models/qwen --trtllm-version 1.2.1 --gpu L40S
    """
    container = container_for(trtllm_version)
    server = ServerVersions(trtllm_version, tensorrt or (container.tensorrt if container else None))
    load_package(folder).check_loadable(server, gpu_by_name(gpu) if gpu else next(iter(detect_gpus()), None))
    facts = {"package": str(folder), "loadable": True, "tensorrt_llm": server.tensorrt_llm}
    emit(facts, as_json=as_json, text=f"{folder} loads in TensorRT-LLM {trtllm_version}.")


@command.command("show")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
@report_errors
def show(folder: Path, as_json: bool) -> None:
    """Show what a package is and where it came from.

    \b
    Example:
      ./ew package show models/qwen
    """
    package = load_package(folder)
    manifest = package.manifest
    if as_json:
        emit(manifest.model_dump(mode="json"), as_json=True)
        return
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    for name, value in _facts(package):
        table.add_row(name, value)
    Console().print(table)


def _facts(package: Package) -> list[tuple[str, str]]:
    manifest = package.manifest
    engine = manifest.engine
    revision = f" @ {manifest.source.revision}" if manifest.source.revision else ""
    sizes = manifest.sizes
    return [
        ("package", str(package.folder)),
        ("source", f"{manifest.source.model}{revision}"),
        ("model", f"{manifest.model.architecture} ({manifest.model.family})"),
        ("layout", f"{manifest.layout.dtype}, tp {manifest.layout.tp_size}, pp {manifest.layout.pp_size}"),
        (
            "sizes",
            f"batch {sizes.max_batch_size}, input {sizes.max_input_len}, output {sizes.max_output_len}",
        ),
        (
            "TensorRT-LLM",
            f"{manifest.runtime.tensorrt_llm} ({manifest.runtime.era}): {manifest.runtime.reason}",
        ),
        ("engine", f"{engine.state}: {engine.reason}"),
        ("size", f"{shown_bytes(package.bytes)} in {len(manifest.files)} files"),
        ("made", f"{manifest.created} by ew {manifest.tool.version}"),
    ]


@command.command("list")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@json_option
@report_errors
def list_packages(folder: Path | None, as_json: bool) -> None:
    """List the packages in a folder (default: models/).

    \b
    Examples:
      ./ew package list
      ./ew package list /srv/models --json
    """
    models = home().models
    packages = find_packages(folder or models) if folder or models.is_dir() else []
    if as_json:
        emit([_row(package) for package in packages], as_json=True)
    elif packages:
        Console().print(_table(packages))
    else:
        emit(None, as_json=False, text=f"No packages in {folder or models}.")
    for damaged in _left_out(folder or models, packages):
        click.echo(f"Left out, because it is damaged: {damaged}; see ./ew package show {damaged}", err=True)


def _table(packages: list[Package]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("package", "model", "dtype", "tp", "pp", "engine", "size"):
        table.add_column(name, overflow="fold")  # a cut path names nothing
    for package in packages:
        row = {**_row(package), "package": _from_here(package.folder)}
        columns = [str(row[name]) for name in ("package", "model", "dtype", "tp_size", "pp_size", "engine")]
        table.add_row(*columns, shown_bytes(row["bytes"]))
    return table


def _left_out(folder: Path, packages: list[Package]) -> list[Path]:
    listed = {package.folder for package in packages}
    found = sorted(manifest.parent for manifest in folder.glob(f"*/{MANIFEST_NAME}"))
    return [_from_here(place) for place in found if place not in listed]


def _from_here(folder: Path) -> Path:
    """The shortest name that works in this folder."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _row(package: Package) -> dict[str, Any]:
    manifest = package.manifest
    return {
        "package": str(package.folder),
        "model": manifest.model.architecture,
        **manifest.layout.model_dump(),
        "engine": manifest.engine.state,
        "bytes": package.bytes,
    }
