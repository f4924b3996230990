"""Chunk styles: engines send what is new since their last response (delta), or all so far (cumulative)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Style = Literal["delta", "cumulative"]
SURE_AFTER = 3  # chunks, each beginning with the whole one before; answers that repeat themselves do not


@dataclass
class StreamTraits:
    """How a model answers. `style` is None until its chunks have shown it; all its requests share it."""

    decoupled: bool
    style: Style | None = None

    def normalizer(self) -> Deltas | None:
        """What each stream of the model passes through; None where its chunks are deltas."""
        return None if self.style == "delta" else Deltas(self)


class Deltas:
    """Makes deltas of one stream's chunks, each token ids and their log probabilities (or none).

    One doubtful chunk is held back: the second, when it begins with the whole first one.
    """

    def __init__(self, traits: StreamTraits) -> None:
        self._traits = traits
        self._last: list[int] = []
        self._last_log_probs: list[float] = []
        self.chunks = 0  # those with tokens, until they turn out to be deltas
        self._given = 0

    def push(self, ids: list[int], log_probs: list[float]) -> tuple[list[int], list[float]]:
        """What is new."""
        if self._traits.style == "delta" or (ids and not self._goes_on(ids)):
            return self._as_delta(ids, log_probs)
        if ids:
            self._last, self._last_log_probs = ids, log_probs
            self.chunks += 1
        if self._traits.style is None and self.chunks >= SURE_AFTER:
            self._traits.style = "cumulative"
        if self.chunks == 1 or self._traits.style == "cumulative":
            return self._as_cumulative()
        return [], []

    def rest(self) -> tuple[list[int], list[float]]:
        """What is held back at the end: where nothing spoke against a cumulative engine, it is one."""
        return self._as_delta([], []) if self._traits.style == "delta" else self._as_cumulative()

    def _goes_on(self, ids: list[int]) -> bool:
        """Does the chunk begin with the whole one before? Only a known cumulative engine repeats itself."""
        known = self._traits.style == "cumulative"
        longer = len(ids) > len(self._last) or (known and len(ids) == len(self._last))
        return longer and ids[: len(self._last)] == self._last

    def _as_cumulative(self) -> tuple[list[int], list[float]]:
        start, self._given = self._given, len(self._last)
        return self._last[start:], self._last_log_probs[start:]

    def _as_delta(self, ids: list[int], log_probs: list[float]) -> tuple[list[int], list[float]]:
        self._traits.style = "delta"
        held, held_log_probs = self._last, self._last_log_probs
        is_held = self._given < len(held)
        self._last, self._last_log_probs, self._given = [], [], 0
        return (held + ids, held_log_probs + log_probs) if is_held else (ids, log_probs)
