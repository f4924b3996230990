"""An engine worker that computes nothing: each step takes its time and brings every request one token.

The bridge starts it as it starts any worker; `options` hold `step_ms`.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.__main__ import ADAPTERS, main
from worker.protocol import Finish, GenerationRequest, Ready, Refusal, Update
from worker.serving import Load
from worker.validate import Limits

MOST = 1024
LENGTH = 4096
VOCABULARY = 1000


class PacedEngine:
    """See worker.serving.Adapter."""

    limits = Limits(VOCABULARY, LENGTH, LENGTH, 2 * LENGTH)
    ready = Ready("paced", VOCABULARY, MOST, LENGTH, LENGTH, MOST * LENGTH, 64)

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._left: dict[int, int] = {}
        self._due = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._left)

    @property
    def active(self) -> int:
        return len(self._left)

    def load(self) -> Load:
        return Load(len(self._left), 0.0)

    def submit(self, request: GenerationRequest) -> None:
        self._left[request.request_id] = request.sampling.max_tokens

    def cancel(self, request_id: int) -> None:
        self._left.pop(request_id, None)

    def step(self) -> list[Update | Refusal]:
        self._due = max(self._due + self._step_s, time.monotonic())
        time.sleep(max(self._due - time.monotonic(), 0.0))
        return [self._token(request_id) for request_id in list(self._left)]

    def _token(self, request_id: int) -> Update:
        self._left[request_id] -= 1
        ended = self._left[request_id] == 0
        if ended:
            del self._left[request_id]
        return Update(request_id, array("i", [7]), Finish.LENGTH if ended else Finish.NONE, None, 0)


def load(package: Path, options: Mapping[str, Any]) -> PacedEngine:
    """What worker.__main__ calls; there is no package to read."""
    return PacedEngine(options["step_ms"] / 1e3)


if __name__ == "__main__":
    ADAPTERS["paced"] = "benchmarks.paced_engine"
    sys.exit(main(sys.argv[1:]))
