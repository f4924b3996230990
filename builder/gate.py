"""The version gate: an engine loads only in the TensorRT-LLM, TensorRT and GPU generation that built it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import NoReturn

from builder.compat import Era, container_for, era_of, newest_container, parse_version
from builder.gpus import Gpu
from builder.manifest import EngineInfo, Manifest
from common.errors import PackageError


@dataclass(frozen=True)
class ServerVersions:
    """What a server runs; None where it is not known."""

    tensorrt_llm: str | None = None
    tensorrt: str | None = None


@dataclass(frozen=True)
class Built:
    """What an engine was built with; for a package without eras or engine, what it is planned for."""

    era: Era
    tensorrt_llm: str | None = None
    tensorrt: str | None = None
    capability: str | None = None


@dataclass(frozen=True)
class Mismatch:
    """Why a server does not load an engine; `code` is stable."""

    code: str
    why: str


def mismatch(
    built: Built, server: ServerVersions, capability: str | None = None, gpu_name: str = "the GPU"
) -> Mismatch | None:
    """Why a server with these versions and this GPU cannot load what was built, or None.

    The one set of rules: `package check` asks it of a package, `start` of every model before it starts.
    """
    found = server.tensorrt_llm
    if built.era == "pytorch":
        if found is None or parse_version(found) >= parse_version("1.0"):
            return None
        return Mismatch("runtime_version", f"It needs TensorRT-LLM 1.0 or later; this server runs {found}.")
    if built.tensorrt_llm and found and not same_version(built.tensorrt_llm, found):
        why = f"It was built with TensorRT-LLM {built.tensorrt_llm}; this server runs {found}."
        removed = " That version has no engine support at all." if era_of(found) == "pytorch" else ""
        return Mismatch("engine_version", why + removed)
    if built.tensorrt and server.tensorrt and built.tensorrt != server.tensorrt:
        why = f"It was built with TensorRT {built.tensorrt}; this server has {server.tensorrt}."
        return Mismatch("engine_tensorrt", why)
    if built.capability and capability and built.capability != capability:
        why = f"It was built for compute capability {built.capability}; {gpu_name} has {capability}."
        return Mismatch("engine_gpu", why)
    return None


def same_version(built: str, serving: str) -> bool:
    """Patch releases differ in the serialized engine; local labels and a fourth number (1.0.3.2510) don't."""
    ours, theirs = parse_version(built), parse_version(serving)
    return (ours.release[:3], ours.pre, ours.post) == (theirs.release[:3], theirs.pre, theirs.post)


def check_loadable(folder: str, manifest: Manifest, server: ServerVersions, gpu: Gpu | None = None) -> None:
    """Refuse a package that this server cannot load, and name the container that can.

    Args:
        folder: the package, for the message.

    Raises:
        PackageError: `engine_pending`, `engine_version`, `engine_tensorrt`, `engine_gpu`, `runtime_version`.
    """
    engine = manifest.engine
    if manifest.runtime.era == "engine" and engine.state != "built":
        _refuse_unbuilt(folder, engine)
    built = Built(manifest.runtime.era, engine.tensorrt_llm, engine.tensorrt, engine.compute_capability)
    problem = mismatch(built, server, gpu.compute_capability, gpu.name) if gpu else mismatch(built, server)
    if problem:
        raise PackageError(
            f"{folder} does not load in this server.",
            why=problem.why,
            hint=_hint(problem, manifest),
            code=problem.code,
        )


def _hint(problem: Mismatch, manifest: Manifest) -> str:
    if problem.code == "runtime_version":
        return f"Serve it with {manifest.runtime.container or newest_container().tag}."
    if problem.code == "engine_gpu":
        return "Build it again on this GPU: run the same convert-trt command here."
    container = container_for(manifest.engine.tensorrt_llm or "")
    serve = f"Serve it with {container.tag}, or build" if container else "Build"
    return f"{serve} the engine again where it is served (convert-trt --force)."


def _refuse_unbuilt(folder: str, engine: EngineInfo) -> NoReturn:
    command = shlex.join(engine.command)
    raise PackageError(
        f"{folder} holds a checkpoint, but no engine yet.",
        why=engine.reason,
        hint=f"On a GPU machine run: {command}" if command else "Run convert-trt with --stage engine.",
        code="engine_pending",
    )
