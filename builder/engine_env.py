"""Where an engine can be built: trtllm-build at hand with a GPU, or a container to run elsewhere."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from builder.gpus import Gpu, detect_gpus

BUILDER_VARIABLE = "EW_TRTLLM_BUILD"
VERSION_CODE = (
    "import importlib.metadata as m\n"
    "for name in ('tensorrt_llm', 'tensorrt'):\n"
    "    try: print(m.version(name))\n"
    "    except m.PackageNotFoundError: print('')\n"
)


@dataclass(frozen=True)
class BuildEnvironment:
    """A trtllm-build that can run here: its versions and the GPUs it would use."""

    program: Path
    tensorrt_llm: str
    tensorrt: str | None
    gpus: tuple[Gpu, ...]


def builder_program() -> Path | None:
    """trtllm-build: named by EW_TRTLLM_BUILD, else on the PATH."""
    named = os.environ.get(BUILDER_VARIABLE)
    found = shutil.which(named or "trtllm-build")
    return Path(found) if found else None


@functools.lru_cache(maxsize=8)
def _versions(program: Path) -> tuple[str, str]:
    """Versions of tensorrt_llm and tensorrt beside `program`, asked of its own Python; '' where unknown."""
    python = _python_of(program)
    try:
        answer = subprocess.run(
            [str(python), "-c", VERSION_CODE], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "", ""
    lines = [*answer.stdout.splitlines(), "", ""]
    return lines[0].strip(), lines[1].strip()


def _python_of(program: Path) -> Path:
    """The interpreter in the script's first line, else the one beside it."""
    with program.open("rb") as file:
        first = file.readline(4096)
    if first.startswith(b"#!") and b"python" in first:
        return Path(first[2:].decode(errors="replace").split()[0])
    return program.with_name("python3")


def installed_version() -> str | None:
    """The tensorrt_llm version at hand, or None."""
    program = builder_program()
    return (_versions(program)[0] or None) if program else None


def build_environment() -> tuple[BuildEnvironment | None, str]:
    """What can build here, or why nothing can."""
    program = builder_program()
    if program is None:
        return None, "trtllm-build is not installed here"
    tensorrt_llm, tensorrt = _versions(program)
    if not tensorrt_llm:
        return None, f"{program} does not say its TensorRT-LLM version"
    gpus = detect_gpus()
    if not gpus:
        return None, "this machine has no NVIDIA GPU"
    return BuildEnvironment(program, tensorrt_llm, tensorrt or None, tuple(gpus)), ""
