"""Tokens that must not come next: bad words, and the end id before min_tokens.

The engine can bar a set of tokens for a whole request only. So a request with bad words runs as segments:
when the set changes, it is given to the engine again with what it has generated, which the prefix cache
makes cheap. For a bad word of several tokens its last token is barred once the others have come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from worker.protocol import Sampling, Status
from worker.validate import RequestRefused


class BannedTokens:
    """Follows one request token by token."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        words = [word for word in sampling.bad_words if word]
        self._always = frozenset(word[0] for word in words if len(word) == 1)
        self._phrases = [word for word in words if len(word) > 1]
        self._recent: deque[int] = deque(prompt, maxlen=max((len(word) - 1 for word in words), default=0))
        self._end_id = sampling.end_id
        self._until_end_id = sampling.min_tokens if sampling.end_id is not None else 0
        _refuse_unless_carried_out(sampling, changing=bool(self._phrases or self._until_end_id))

    def append(self, token: int) -> None:
        self._recent.append(token)
        self._until_end_id -= 1

    def next(self) -> frozenset[int]:
        """The tokens barred at the next position."""
        recent = tuple(self._recent)
        lasts = {word[-1] for word in self._phrases if recent[-(len(word) - 1) :] == word[:-1]}
        if self._until_end_id > 0 and self._end_id is not None:
            lasts.add(self._end_id)
        return self._always | lasts


def _refuse_unless_carried_out(sampling: Sampling, *, changing: bool) -> None:
    """The engine counts repetitions within a segment, so these penalties would forget."""
    if changing and (sampling.presence_penalty or sampling.frequency_penalty):
        raise RequestRefused(
            "bad_words_list with words of several tokens, or with min_tokens, does not go together with "
            "presence_penalty or frequency_penalty in this engine.",
            status=Status.UNSUPPORTED,
            code="bad_words_with_penalty",
        )
