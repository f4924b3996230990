"""`python -m proxy` as a process in front of a tritonserver of the tests, without keys."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests

from common.paths import SOURCE_ROOT
from tests.worker.triton import Triton, free_ports, wait_until

START_SECONDS = 60.0


@contextlib.contextmanager
def proxy_process(
    folder: Path,
    packages: Mapping[str, Path],
    triton: Triton,
    *options: str,
    model: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its address and the process; `packages` is model id -> package, `model` more of each config entry."""
    config = folder / "config.json"
    models = {
        name: {"engine": "cpu", "model_path": str(path), **(model or {})} for name, path in packages.items()
    }
    config.write_text(json.dumps({"models": models}))
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    arguments = [f"--config={config}", f"--triton=http://127.0.0.1:{triton.http_port}", f"--port={port}"]
    command = [sys.executable, "-m", "proxy", *arguments, *options]
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": _path()}, stderr=log)
    try:
        wait_until(lambda: _is_ready(url), START_SECONDS)
        yield url, process
    finally:
        process.kill()
        process.wait()


def _path() -> str:
    return os.pathsep.join(filter(None, (str(SOURCE_ROOT), os.environ.get("PYTHONPATH"))))


def _is_ready(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{url}/health/ready", timeout=5).ok
    return False
