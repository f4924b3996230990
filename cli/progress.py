"""A progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextlib.contextmanager
def progress_display(*, quiet: bool) -> Iterator[PhaseDisplay]:
    """Shows phases on stderr; in a pipe each phase is one line, and with `quiet` nothing is shown."""
    if quiet:
        yield PhaseDisplay(None, speaks=False)
        return
    if not sys.stderr.isatty():
        yield PhaseDisplay(None, speaks=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
               TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield PhaseDisplay(bar, speaks=False)


class PhaseDisplay:
    """Called with (phase, bytes done, bytes total); one bar, restarted at each phase."""

    def __init__(self, bar: Progress | None, *, speaks: bool) -> None:
        self._bar = bar
        self._speaks = speaks
        self._phase = ""
        self._task: TaskID | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        kind = phase.partition(":")[0]
        if self._speaks and kind != self._phase:
            print(f"{kind} ...", file=sys.stderr)
        self._phase = kind
        if self._bar is None:
            return
        if self._task is None:
            self._task = self._bar.add_task(phase, total=None)
        self._bar.update(self._task, description=phase, completed=done, total=total or None)
