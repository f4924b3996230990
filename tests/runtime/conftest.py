"""Every test here has a home folder of its own; what it leaves running is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def ew_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, in force for this test."""
    monkeypatch.setenv("EW_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start `python -c CODE` with extra environment; everything started is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, **environment: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()
