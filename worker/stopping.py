"""Stop words as token id sequences, matched while tokens arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class StopWords:
    """Tells when the newest tokens end in one of `words`."""

    def __init__(self, words: Iterable[tuple[int, ...]]) -> None:
        self._words = tuple(word for word in words if word)
        self._recent: deque[int] = deque(maxlen=max(map(len, self._words), default=0))

    def ends_with(self, token: int) -> bool:
        """Take the next token; True when it completes a stop word."""
        if not self._words:
            return False
        self._recent.append(token)
        recent = tuple(self._recent)
        return any(recent[-len(word) :] == word for word in self._words)
