"""`start --foreground` as process 1 of namespaces of its own: read-only, without capabilities, no network."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.errors import Interrupted, ServiceError
from common.paths import SOURCE_ROOT
from scripts import container_sandbox
from scripts.container_sandbox import Box, Running
from tests.e2e.conftest import TINY_MODEL
from tests.e2e.conftest import tiny_package as tiny_package

HOME = "/tmp/ew-home"
HEALTH = (sys.executable, str(SOURCE_ROOT / "scripts" / "container_health.py"))
SECONDS = 60.0

pytestmark = pytest.mark.skipif(
    bool(container_sandbox.obstacle()), reason=container_sandbox.obstacle() or "-"
)


@pytest.fixture
def home(tmp_path: Path, tiny_package: Path) -> Path:
    shutil.copytree(tiny_package, tmp_path / "home" / "models" / TINY_MODEL)
    return tmp_path / "home"


@contextmanager
def foreground(home: Path) -> Iterator[Running]:
    """The service as a container's only command, without an init in front of it."""
    command = (sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), "start", "--foreground")
    environment = {"PATH": os.environ["PATH"], "EW_HOME": HOME, "HOME": HOME, "PYTHONDONTWRITEBYTECODE": "1"}
    kept = tuple(path for path in {str(SOURCE_ROOT), sys.prefix, sys.base_prefix} if path != "/usr")
    box = Box(
        "/",
        (*command, "--host=0.0.0.0", f"--model=models/{TINY_MODEL}"),
        environment,
        ((str(home), HOME),),
        kept,
        folder=HOME,
    )
    with container_sandbox.started(box, home.parent / "output.log") as running:
        yield running


def wait_for(condition: Callable[[], bool], running: Running, home: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert running.outer.poll() is None, (home.parent / "output.log").read_text()
        assert time.monotonic() < deadline, (home.parent / "output.log").read_text()
        time.sleep(0.1)


def ready(running: Running) -> bool:
    return running.execute(*HEALTH).returncode == 0


def test_serves_and_stops_as_the_first_process(home: Path) -> None:
    with foreground(home) as running:
        assert not ready(running)
        wait_for(lambda: ready(running), running, home)
        assert "Read-only" in running.execute("touch", "/usr/x").stderr
        assert "Read-only" in running.execute("touch", str(SOURCE_ROOT / "x")).stderr
        assert int(running.execute("grep", "^CapEff", "/proc/1/status").stdout.split()[1], 16) == 0
        orphan = running.execute("/bin/sh", "-c", "sleep 0.5 >/dev/null 2>&1 & echo $!").stdout.strip()
        assert int(orphan) in running.processes()
        wait_for(lambda: int(orphan) not in running.processes(), running, home)
        running.signal(signal.SIGTERM)
        assert running.wait(SECONDS) == 0
    assert not (home / "run" / "service.json").exists()


def test_fails_when_tritonserver_dies(home: Path) -> None:
    with foreground(home) as running:
        wait_for(lambda: ready(running), running, home)
        find = "grep -lx tritonserver /proc/[0-9]*/comm | cut -d/ -f3"
        assert running.execute("/bin/sh", "-c", f"kill -9 $({find})").returncode == 0
        assert running.wait(SECONDS) == ServiceError.exit_code
    assert "triton ended unexpectedly" in (home.parent / "output.log").read_text()


def test_a_signal_while_it_starts_ends_it(home: Path) -> None:
    with foreground(home) as running:
        wait_for((home / "run" / "service.json").exists, running, home)
        running.signal(signal.SIGTERM)
        assert running.wait(SECONDS) == Interrupted.exit_code
    assert not (home / "run" / "service.json").exists()
