"""`start --foreground` while somebody else starts or stops: the service does not outlive its parent."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from pathlib import Path

from runtime import foreground, state
from runtime.processes import SERVICE_VARIABLE
from runtime.state import Service
from tests.runtime.conftest import Spawn
from tests.runtime.test_teardown import SLEEP, recorded


def test_a_signal_while_another_start_is_at_work_stops_after_it(ew_home: Path, spawn: Spawn) -> None:
    service_id = f"test{uuid.uuid4().hex[:8]}"
    mark = {SERVICE_VARIABLE: service_id}
    triton, proxy = (spawn(SLEEP, **mark) for _ in range(2))
    service = recorded(service_id, triton.pid, proxy.pid)
    held, released = threading.Event(), []

    def start_elsewhere() -> None:
        with state.exclusive():
            held.set()
            time.sleep(3 * state.LOCK_PATIENCE)
            released.append(service.health())

    other = threading.Thread(target=start_elsewhere)

    def start() -> Service:
        other.start()
        held.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        return service

    foreground.run(start, lambda log, line: None, drain_seconds=1)
    other.join()
    assert released == ["ready"], "nothing was stopped while the other one was at work"
    assert state.load() is None
    assert not service.live_processes()
