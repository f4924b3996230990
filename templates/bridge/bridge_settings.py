"""Where the bridge finds its worker: worker.json of the model version, else parameters and environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_START_TIMEOUT_S = 900.0
DEFAULT_STALL_TIMEOUT_S = 120.0


class SettingsError(Exception):
    """worker.json is wrong, or nothing says which package to serve."""


@dataclass(frozen=True)
class Settings:
    """How to start the worker, and how long it may take to start or to finish one engine step."""

    name: str
    engine: str
    python: str
    root: Path
    package: Path
    options: Mapping[str, Any]
    env: Mapping[str, str]
    log_file: Path
    start_timeout_s: float
    stall_timeout_s: float

    def command(self, fd: int) -> list[str]:
        arguments = {
            "--fd": str(fd),
            "--engine": self.engine,
            "--package": str(self.package),
            "--options": json.dumps(self.options),
            "--name": self.name,
        }
        return [self.python, "-m", "worker", *(part for pair in arguments.items() for part in pair)]


def read_settings(arguments: Mapping[str, str], model_config: Mapping[str, Any]) -> Settings:
    """Settings of the model that Triton describes with `arguments` (those of `initialize`).

    Raises:
        SettingsError: worker.json is not valid, or there is no package or no worker to run it.
    """
    version_folder = Path(_local(arguments["model_repository"])) / arguments["model_version"]
    document = _read_document(version_folder / "worker.json")
    log_folder = Path(os.environ.get("EW_LOG_DIR") or version_folder)
    return Settings(
        name=arguments["model_name"],
        engine=document.get("engine") or "cpu",
        python=_local(document.get("python") or "") or os.environ.get("EW_WORKER_PYTHON") or sys.executable,
        root=_root(document, version_folder),
        package=_package(document, model_config, version_folder),
        options=document.get("options") or {},
        env={name: str(value) for name, value in (document.get("env") or {}).items()},
        log_file=log_folder / "worker.log",
        start_timeout_s=float(document.get("start_timeout_s") or DEFAULT_START_TIMEOUT_S),
        stall_timeout_s=float(document.get("stall_timeout_s") or DEFAULT_STALL_TIMEOUT_S),
    )


def _local(path: str) -> str:
    """A path as this Python's file functions take it: Triton's stub has ASCII for them in any locale."""
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} is not readable JSON: {error}. Render the repository again.") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{path} is not a JSON object. Render the repository again.")
    return document


def _root(document: Mapping[str, Any], version_folder: Path) -> Path:
    """Where the worker's code is; a relative path in worker.json starts at the version folder."""
    given = _local(document.get("root") or "") or os.environ.get("EW_ROOT")
    if not given:
        raise SettingsError("Nothing says where the worker is: set root in worker.json, or EW_ROOT.")
    root = (version_folder / given).resolve()
    if not (root / "worker" / "__main__.py").is_file():
        raise SettingsError(f"There is no worker in {root}: correct root in worker.json, or EW_ROOT.")
    return root


def _package(document: Mapping[str, Any], model_config: Mapping[str, Any], version_folder: Path) -> Path:
    parameters = model_config.get("parameters") or {}
    given = document.get("package") or (parameters.get("gpt_model_path") or {}).get("string_value")
    if not given or given.startswith("${"):
        raise SettingsError("Nothing says what to serve: set package in worker.json, or gpt_model_path.")
    package = Path(version_folder / _local(given)).resolve()
    # gpt_model_path names the checkpoint inside the package.
    if package.name in ("checkpoint", "engine") and not (package / "checkpoint").is_dir():
        package = package.parent
    if not package.is_dir():
        raise SettingsError(f"The package {package} is not there. Convert the model, then render again.")
    return package
