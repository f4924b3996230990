"""`start --foreground`: stay as the parent of the service, for containers and service managers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from common.errors import ServiceError
from runtime import state, teardown
from runtime.bringup import STOP_SIGNALS
from runtime.logs import LOGS, Follower
from runtime.state import Service

TICK_SECONDS = 0.1

Show = Callable[[str, str], None]  # (log, line)


def run(start: Callable[[], Service], show: Show, *, drain_seconds: float = 30.0) -> None:
    """Start a service and show its logs until a signal asks to stop. A second signal ends it at once.

    Raises:
        EwError: whatever `start` raises.
        ServiceError: tritonserver or the proxy ended by itself; the rest has been stopped.
    """
    with _captured_signals() as received:
        service = start()
        logs = Follower(LOGS, start_at_end=False)
        while not received and not _dead(service):
            _show_all(logs, show)
            _reap()
            time.sleep(TICK_SECONDS)
            service = _current(service)
        stopped_elsewhere = not received and _is_being_stopped()
        dead = [] if received or stopped_elsewhere else _dead(service)
        _stop(drain_seconds) if not stopped_elsewhere else _wait_until_stopped(service)
        _show_all(logs, show)
        _reap()
    if dead:
        raise ServiceError(
            f"{' and '.join(dead)} ended unexpectedly; the service is stopped.",
            hint=f"Read why with ./ew logs {dead[0]}",
            code="process_died",
        )


def _current(service: Service) -> Service:
    """The service as others left it: `ew start` and `ew stop --engine` add and take away servers."""
    return state.load() or service


def _dead(service: Service) -> list[str]:
    """The logs of the processes that ended, but for servers that are being added or taken away."""
    ended = ["triton" for server in service.servers if server.phase == "ready" and not server.alive]
    return [*ended, *(["proxy"] if service.proxy and not service.proxy.alive else [])]


def _is_being_stopped() -> bool:
    """Whether `ew stop`, run somewhere else, is the reason."""
    current = state.load()
    return current is None or current.phase == "stopping"


def _stop(drain_seconds: float) -> None:
    """Stop, after an `ew start` or `ew stop` of somebody else, or the service would outlive its parent."""
    while True:
        try:
            teardown.stop(drain_seconds=drain_seconds)
            return
        except ServiceError as error:
            if error.code != state.BUSY:
                raise
        _reap()


def _wait_until_stopped(service: Service) -> None:
    while service.live_processes():
        _reap()
        time.sleep(TICK_SECONDS)


def _show_all(logs: Follower, show: Show) -> None:
    for name, line in logs.new_lines():
        show(name, line)


def _reap() -> None:
    """Collect every ended child: as a container's first process we inherit the orphans of all others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


@contextmanager
def _captured_signals() -> Iterator[list[int]]:
    """The stop signals received so far; from the second one on, each kills what is left of the service."""
    received: list[int] = []

    def note(signal_number: int, frame: FrameType | None) -> None:
        service = state.load() if received else None
        for process in service.live_processes() if service else ():
            process.send(signal.SIGKILL)
        received.append(signal_number)

    previous = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
