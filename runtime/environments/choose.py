"""From options to a request: which manager, Python, release and image."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from builder.compat import container_for, newest_container
from common.config import Engine
from common.errors import EnvironmentProblem, UsageError
from common.paths import SOURCE_ROOT
from runtime.environments import registry
from runtime.environments.plan import CONDA, DEFAULT_NAMES, SetupRequest
from runtime.environments.registry import Manager
from runtime.environments.releases import DISTRIBUTIONS, Release, release_for, vllm_containers
from runtime.launchers.machine import LocalServer, find_local

DEFAULT_PYTHON = "3.12"


@dataclass(frozen=True)
class SetupOptions:
    """The command line of `ew setup`; None and "auto" are decided here."""

    engine: Engine
    name: str | None = None
    manager: str = "auto"
    python: str | None = None
    version: str | None = None
    find_links: Path | None = None


def request_for(options: SetupOptions) -> SetupRequest:
    """
    Raises:
        UsageError: a name, version or manager that cannot be.
        EnvironmentProblem: the manager or Python is not on this machine.
    """
    name = registry.check_name(options.name or DEFAULT_NAMES[options.engine])
    release = None if options.engine == "cpu" else release_for(options.engine, options.version)
    manager = choose_manager(options, release)
    uv = shutil.which("uv") if manager == "venv" else None
    return SetupRequest(
        options.engine,
        name,
        manager,
        _python(options, manager, uv),
        registry.folder() / name,
        release,
        image_for(options.engine, release) if manager == "container" and release else "",
        SOURCE_ROOT / "requirements" / "base.lock" if options.engine == "cpu" else None,
        _existing(options.find_links),
        uv,
    )


def choose_manager(options: SetupOptions, release: Release | None) -> Manager:
    """The one asked for; else this container's own Python, conda or its kin, a virtual environment."""
    if options.engine == "cpu":
        if options.manager not in ("auto", "venv"):
            raise UsageError(
                "The cpu engine's environment is a virtual environment of locked packages.",
                hint="Leave --manager out.",
                code="bad_manager",
            )
        return "venv"
    if options.manager == "auto":
        if release and _in_container(options.engine, release, find_local(os.environ)):
            return "system"
        return next((name for name in CONDA if shutil.which(name)), "venv")
    return options.manager  # type: ignore[return-value]  # click allows only managers


def image_for(engine: Engine, release: Release) -> str:
    """The newest Triton container with that version.

    Raises:
        EnvironmentProblem: no container has it.
    """
    if engine == "cuda-trt":
        row = container_for(release.version)
        tag = row.tag if row else None
    elif engine == "cuda-vllm":
        tag = next((row.tag for row in vllm_containers() if row.vllm == release.version), None)
    else:
        raise EnvironmentProblem(
            f"No Triton container has the engine {engine}.", hint="Use --manager venv.", code="no_image"
        )
    if tag is None:
        raise EnvironmentProblem(
            f"No Triton container has {DISTRIBUTIONS[engine]} {release.version}.",
            hint=f"Use --manager venv, or a version that has one, such as {newest_container().tensorrt_llm}.",
            code="no_image",
        )
    return tag


def _in_container(engine: Engine, release: Release, server: LocalServer | None) -> bool:
    """Whether this machine is a Triton container that has the engine already."""
    if server is None:
        return False
    have = {"cuda-trt": server.tensorrt_llm, "cuda-vllm": server.vllm}.get(engine)
    return have is not None and have.split("+")[0] == release.version


def _python(options: SetupOptions, manager: Manager, uv: str | None) -> str:
    """A version for conda and uv, an interpreter for venv."""
    if manager in ("system", "container"):
        return shutil.which("python3") or "python3"
    if options.engine == "cpu":
        return options.python or (f"{sys.version_info[0]}.{sys.version_info[1]}" if uv else sys.executable)
    wanted = options.python or DEFAULT_PYTHON
    if manager in CONDA or uv or "/" in wanted:
        return wanted
    return shutil.which(f"python{wanted}") or f"python{wanted}"


def _existing(find_links: Path | None) -> Path | None:
    if find_links is None:
        return None
    folder = find_links.expanduser().resolve()
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", hint="--find-links names a folder of wheels.")
    return folder
