"""An engine that stays in the phase a test wants: `python -m tests.e2e.phased_engine`, behind the bridge.

`request_output_len` chooses what it does with a request (`SCRIPTS`). What happens is written to the file
that the option `journal` names, one JSON object a line, with CLOCK_MONOTONIC seconds.
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from worker.protocol import Finish, GenerationRequest, Ready, Refusal, Update
from worker.serving import Load
from worker.validate import Limits

SLOTS = 4
VOCABULARY = 400
LENGTH = 4096
STEP_SECONDS = 0.005
HELD = 60.0
ENGINE = "phased"


@dataclass(frozen=True)
class Script:
    """Seconds of prefill and before each later token; after `held_after` tokens the engine stands still."""

    prefill: float = 0.0
    pace: float = 0.02
    held_after: int = LENGTH


SCRIPTS = {
    1001: Script(prefill=HELD),
    1002: Script(held_after=1),
    1003: Script(),
    4: Script(held_after=3),
}
ORDINARY = Script(pace=0.0)


@dataclass
class Running:
    """One request in a slot."""

    request: GenerationRequest
    script: Script
    due: float
    tokens: int = 0


class PhasedEngine:
    """worker.serving.Adapter. The token of every answer is the last one of its prompt."""

    def __init__(self, journal: Path) -> None:
        self._journal: TextIO = journal.open("a", encoding="utf-8")
        self._waiting: dict[int, GenerationRequest] = {}
        self._running: dict[int, Running] = {}

    @property
    def limits(self) -> Limits:
        return Limits(VOCABULARY, LENGTH, LENGTH, 2 * LENGTH)

    @property
    def ready(self) -> Ready:
        return Ready(ENGINE, VOCABULARY, SLOTS, LENGTH, LENGTH, 1 << 20, 32)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def active(self) -> int:
        return len(self._waiting) + len(self._running)

    def load(self) -> Load:
        return Load(len(self._running), 0.0)

    def submit(self, request: GenerationRequest) -> None:
        self._waiting[request.request_id] = request
        self._note("queued", request.request_id)

    def cancel(self, request_id: int) -> None:
        known = self._waiting.pop(request_id, None) or self._running.pop(request_id, None)
        if known is not None:
            self._note("cancelled", request_id)

    def step(self) -> list[Update | Refusal]:
        self._admit()
        now = time.monotonic()
        updates = [self._token(one, now) for one in list(self._running.values()) if one.due <= now]
        if not updates:
            time.sleep(STEP_SECONDS)
        return list(updates)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < SLOTS:
            request = self._waiting.pop(next(iter(self._waiting)))
            script = SCRIPTS.get(request.sampling.max_tokens, ORDINARY)
            self._running[request.request_id] = Running(request, script, time.monotonic() + script.prefill)
            self._note("prefill", request.request_id)

    def _token(self, one: Running, now: float) -> Update:
        one.tokens += 1
        one.due = now + (HELD if one.tokens == one.script.held_after else one.script.pace)
        request = one.request
        finish = Finish.LENGTH if one.tokens == request.sampling.max_tokens else Finish.NONE
        if finish:
            del self._running[request.request_id]
        self._note("finished" if finish else "token", request.request_id)
        return Update(request.request_id, array("i", [request.input_ids[-1]]), finish)

    def _note(self, event: str, request_id: int) -> None:
        line = {"event": event, "request": request_id, "at": time.monotonic()}
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()


def load(package: Path, options: Mapping[str, Any]) -> PhasedEngine:
    return PhasedEngine(Path(options["journal"]))


if __name__ == "__main__":
    from worker.__main__ import ADAPTERS, main

    ADAPTERS[ENGINE] = "tests.e2e.phased_engine"
    sys.exit(main(sys.argv[1:]))
