"""The version gate: an engine loads only in the TensorRT-LLM, TensorRT and GPU generation that built it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import NoReturn

from builder.compat import container_for, era_of, newest_container, parse_version
from builder.gpus import Gpu
from builder.manifest import EngineInfo, Manifest
from common.errors import PackageError


@dataclass(frozen=True)
class ServerVersions:
    """What a server runs; None where it is not known."""

    tensorrt_llm: str
    tensorrt: str | None = None


def check_loadable(folder: str, manifest: Manifest, server: ServerVersions, gpu: Gpu | None = None) -> None:
    """Refuse a package that this server cannot load, and name the container that can.

    Args:
        folder: the package, for the message.

    Raises:
        PackageError: `engine_pending`, `engine_version`, `engine_tensorrt`, `engine_gpu`, `runtime_version`.
    """
    if manifest.runtime.era == "pytorch":
        _check_pytorch(folder, manifest, server)
        return
    engine = manifest.engine
    if engine.state != "built":
        _refuse_unbuilt(folder, engine)
    if engine.tensorrt_llm != server.tensorrt_llm:
        why = f"It was built with TensorRT-LLM {engine.tensorrt_llm}; this server runs {server.tensorrt_llm}."
        if era_of(server.tensorrt_llm) == "pytorch":
            why += " That version has no engine support at all."
        _refuse(folder, engine, why, "engine_version")
    if engine.tensorrt and server.tensorrt and engine.tensorrt != server.tensorrt:
        why = f"It was built with TensorRT {engine.tensorrt}; this server has {server.tensorrt}."
        _refuse(folder, engine, why, "engine_tensorrt")
    if gpu and gpu.compute_capability and engine.compute_capability not in (None, gpu.compute_capability):
        raise PackageError(
            f"The engine of {folder} does not load on this GPU.",
            why=f"It was built for compute capability {engine.compute_capability} ({engine.gpu});"
            f" {gpu.name} has {gpu.compute_capability}.",
            hint="Build it again on this GPU: run the same convert-trt command here.",
            code="engine_gpu",
        )


def _check_pytorch(folder: str, manifest: Manifest, server: ServerVersions) -> None:
    if parse_version(server.tensorrt_llm) >= parse_version("1.0"):
        return
    tag = manifest.runtime.container or newest_container().tag
    raise PackageError(
        f"{folder} needs the PyTorch runtime of TensorRT-LLM 1.0 or later.",
        why=f"This server runs {server.tensorrt_llm}.",
        hint=f"Serve it with {tag}.",
        code="runtime_version",
    )


def _refuse_unbuilt(folder: str, engine: EngineInfo) -> NoReturn:
    command = shlex.join(engine.command)
    raise PackageError(
        f"{folder} holds a checkpoint, but no engine yet.",
        why=engine.reason,
        hint=f"On a GPU machine run: {command}" if command else "Run convert-trt with --stage engine.",
        code="engine_pending",
    )


def _refuse(folder: str, engine: EngineInfo, why: str, code: str) -> NoReturn:
    container = container_for(engine.tensorrt_llm or "")
    serve = f"Serve it with {container.tag}, or build" if container else "Build"
    raise PackageError(
        f"The engine of {folder} does not load in this server.",
        why=why,
        hint=f"{serve} the engine again where it is served (convert-trt --force).",
        code=code,
    )
