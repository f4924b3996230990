"""The processes an engine starts for itself must not outlive the worker, however the worker ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Waits for the end of its input, which is the end of the worker, and then ends the processes it was told.
GUARD = 'read -r _; kill -9 "$@" 2>/dev/null'


def end_with_worker() -> None:
    """Call when the engine has started its processes: those that run now end with this one, even if killed.

    vLLM's engine core ends with the interpreter's own clean-up only, and waits for ever without it.
    """
    processes = [str(process) for process in descendants(os.getpid())]
    if processes:
        guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", *processes], stdin=subprocess.PIPE, start_new_session=True
        )
        _guards.append(guard)


_guards: list[subprocess.Popen[bytes]] = []  # an open pipe each, for as long as this process lives


def descendants(process: int) -> list[int]:
    """Children, their children and so on, as the kernel lists them."""
    found: list[int] = []
    for listing in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, listing.read_text(encoding="ascii").split()):
            found += [child, *descendants(child)]
    return found
