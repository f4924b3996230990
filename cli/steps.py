"""Steps with their times: a live clock on a terminal, one line a step elsewhere. Always on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.status import Status


class Steps:
    """Call it with a step's name; the one before it is then done. Use as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._began = time.monotonic()
        self._step: str | None = None
        self._status: Status | None = None

    def __enter__(self) -> Steps:
        return self

    def __call__(self, step: str) -> None:
        self.done()
        self._step, self._began = step, time.monotonic()
        if self._console.is_terminal:
            self._status = self._console.status(step)
            self._status.start()

    def done(self, mark: str = "✓") -> None:
        """End the current step, if there is one, and print it with its seconds."""
        self._stop_clock()
        if self._step is not None:
            self._console.print(
                f"{mark} {self._step}  [dim]{time.monotonic() - self._began:.1f} s[/dim]", soft_wrap=True
            )
        self._step = None

    def _stop_clock(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.done("✗" if error else "✓")
