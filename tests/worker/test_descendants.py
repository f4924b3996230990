"""An engine's processes end with the worker, also when it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from tests.worker.triton import wait_until
from worker.backend import SOURCE_ROOT

ENGINE = """
import os, subprocess, sys, time
from worker.descendants import descendants, end_with_worker
subprocess.Popen(["sh", "-c", "sleep 300 & wait"])
time.sleep(0.3)
family = descendants(os.getpid())
end_with_worker()
print(*family, flush=True)
{ending}
"""


@pytest.mark.parametrize("ending", ["os._exit(0)", "time.sleep(300)"])
def test_no_process_of_the_engine_is_left(ending: str) -> None:
    command = [sys.executable, "-c", ENGINE.format(ending=ending)]
    with subprocess.Popen(command, cwd=SOURCE_ROOT, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        family = [int(process) for process in worker.stdout.readline().split()]
        if "sleep" in ending:
            worker.send_signal(signal.SIGKILL)
    assert len(family) == 2
    wait_until(lambda: not any(is_running(process) for process in family), 10.0)


def is_running(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
