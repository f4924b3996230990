"""Stops that came before the request they mean: a long prompt takes Triton longer to read than a stop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

REMEMBER_S = 30.0
MOST_REMEMBERED = 4096


class EarlyStops:
    """Ids of requests that are to end as soon as they come. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def remember(self, triton_id: str) -> None:
        """Keep an id for a while; beyond the limit the oldest is forgotten."""
        self._forget_old()
        self._until.pop(triton_id, None)
        if len(self._until) >= MOST_REMEMBERED:
            del self._until[next(iter(self._until))]
        self._until[triton_id] = self._clock() + REMEMBER_S

    def take(self, triton_id: str) -> bool:
        """Whether this request was stopped already; the stop counts once."""
        return bool(self._until) and self._until.pop(triton_id, 0.0) > self._clock()

    def __len__(self) -> int:
        return len(self._until)

    def _forget_old(self) -> None:
        now = self._clock()
        for triton_id in list(itertools.takewhile(lambda known: self._until[known] <= now, self._until)):
            del self._until[triton_id]
