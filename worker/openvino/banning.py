"""Bad words in an engine that can bar a set of tokens for a whole request only.

So a request with bad words runs as segments: when the set changes, it is given to the engine again with what
it has generated, which the prefix cache makes cheap.
"""

from __future__ import annotations

from collections.abc import Iterable

from worker import banning
from worker.protocol import Sampling, Status
from worker.validate import RequestRefused


class BannedTokens(banning.BannedTokens):
    """Follows one request token by token. Raises RequestRefused for what segments cannot carry out."""

    def __init__(
        self, sampling: Sampling, prompt: Iterable[int], barred: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(sampling, prompt, barred)
        _refuse_unless_carried_out(sampling, changing=self.change)


def _refuse_unless_carried_out(sampling: Sampling, *, changing: bool) -> None:
    """The engine counts repetitions within a segment, so these penalties would forget."""
    if changing and (sampling.presence_penalty or sampling.frequency_penalty):
        raise RequestRefused(
            "bad_words_list with words of several tokens, and it or embedding_bias with min_tokens, do not "
            "go together with presence_penalty or frequency_penalty in this engine.",
            status=Status.UNSUPPORTED,
            code="bad_words_with_penalty",
        )
