"""Tokens that must not come next: bad words, and the end id before min_tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from worker.protocol import Sampling


class BannedTokens:
    """Follows one request token by token. Of a bad word of several tokens the last is barred in its place.

    `barred` are further tokens that never come.
    """

    def __init__(
        self, sampling: Sampling, prompt: Iterable[int], barred: frozenset[int] = frozenset()
    ) -> None:
        words = [word for word in sampling.bad_words if word]
        self._always = barred | {word[0] for word in words if len(word) == 1}
        self._phrases = [word for word in words if len(word) > 1]
        self._recent: deque[int] = deque(prompt, maxlen=max((len(word) - 1 for word in words), default=0))
        self._end_id = sampling.end_id
        self._until_end_id = sampling.min_tokens if sampling.end_id is not None else 0

    @property
    def change(self) -> bool:
        """Whether other tokens may be barred later than now."""
        return bool(self._phrases or self._until_end_id > 0)

    def append(self, token: int) -> None:
        self._recent.append(token)
        self._until_end_id -= 1

    def next(self) -> frozenset[int]:
        """The tokens barred at the next position."""
        recent = tuple(self._recent)
        lasts = {word[-1] for word in self._phrases if recent[-(len(word) - 1) :] == word[:-1]}
        if self._until_end_id > 0 and self._end_id is not None:
            lasts.add(self._end_id)
        return self._always | lasts if lasts else self._always
