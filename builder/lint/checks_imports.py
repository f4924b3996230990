"""`ew lint --import-check`: import each Python model in a process of its own.

This runs the repository's code, so it is never done unasked. The process gets a few harmless environment
variables, an empty folder as its home, a stand-in for triton_python_backend_utils, and a time limit. It is no
sandbox: files that the user may read, it may read.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from builder.lint.repository import Model, Repository
from builder.lint.rules import RULES, Finding

PROBE = Path(__file__).with_name("import_probe.py")
SECONDS = 120
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "CUDA_HOME")


def check_imports(model: Model, repository: Repository) -> Iterator[Finding]:
    python = repository.options.import_with
    if python is None or model.config.backend != "python":
        return
    for folder in model.served:
        main = folder / (model.config.default_model_filename or "model.py")
        if main.is_file():
            yield from _import(model, main, python)


def _import(model: Model, main: Path, python: str) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as empty:
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        try:
            done = subprocess.run(
                [python, "-I", "-B", str(PROBE), str(main.resolve())],
                cwd=empty,
                env={**environment, "HOME": empty},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            yield _failed(model, main, f"its import took more than {SECONDS} s")
            return
        except OSError as error:
            yield _failed(model, main, f"{python} does not start: {error.strerror}")
            return
    if done.returncode != 0:
        yield _told(model, main, done)


def _told(model: Model, main: Path, done: subprocess.CompletedProcess[str]) -> Finding:
    """The probe's last line says what was raised, where; a process that died says nothing."""
    try:
        told = json.loads(done.stdout.splitlines()[-1])
        path, line, message = Path(told["file"]), int(told["line"]), str(told["message"])
    except (IndexError, ValueError, KeyError, TypeError):
        return _failed(model, main, f"its process ended with status {done.returncode}")
    inside = path.is_relative_to(model.folder.resolve())
    file = (
        f"{model.name}/{path.relative_to(model.folder.resolve()).as_posix()}"
        if inside
        else model.name_of(main)
    )
    return Finding(RULES["EW410"], file, line if inside else 1, message)


def _failed(model: Model, main: Path, message: str) -> Finding:
    return Finding(RULES["EW410"], model.name_of(main), 1, message)
