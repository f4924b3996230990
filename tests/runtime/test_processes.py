"""Processes are known by pid and start time; a service's are found by their mark."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

from runtime.processes import SERVICE_VARIABLE, ProcessRef, processes_of, terminate, wait_gone
from tests.runtime.conftest import Spawn

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
WITH_ORPHAN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("up", flush=True)
"""


def test_a_live_process_is_known_and_an_ended_one_is_not(spawn: Spawn) -> None:
    child = spawn(SLEEP)
    process = ProcessRef.of(child.pid)
    assert process is not None and process.alive
    child.kill()
    child.wait()
    assert not process.alive
    assert ProcessRef.of(child.pid) is None


def test_a_zombie_counts_as_ended(spawn: Spawn) -> None:
    child = spawn(SLEEP)
    process = ProcessRef.of(child.pid)
    assert process is not None
    os.kill(child.pid, signal.SIGKILL)
    assert wait_gone([process], 5) == []  # not waited for yet: it is a zombie now


def test_a_recycled_pid_is_never_signalled(spawn: Spawn) -> None:
    child = spawn(SLEEP)
    process = ProcessRef.of(child.pid)
    assert process is not None
    earlier = replace(process, started=process.started - 1)
    assert not earlier.alive
    assert terminate([earlier], 0.1) == []
    assert child.poll() is None


def test_terminate_kills_what_ignores_sigterm(spawn: Spawn) -> None:
    polite, stubborn = spawn(SLEEP), spawn(STUBBORN)
    refs = [ProcessRef.of(child.pid) for child in (polite, stubborn)]
    killed = terminate([ref for ref in refs if ref], 0.5)
    assert [process.pid for process in killed] == [stubborn.pid]
    assert polite.wait() == -signal.SIGTERM
    assert stubborn.wait() == -signal.SIGKILL


def test_orphans_in_other_sessions_are_found_by_the_mark(spawn: Spawn) -> None:
    parent = spawn(WITH_ORPHAN, **{SERVICE_VARIABLE: "mark-of-this-test"})
    parent.wait()
    orphans = processes_of("mark-of-this-test")
    assert len(orphans) == 1
    terminate(orphans, 2)
    assert processes_of("mark-of-this-test") == []
