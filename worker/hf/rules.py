"""What the next token of one request must follow, without the arithmetic."""

from __future__ import annotations

import random
from collections.abc import Sequence

from worker.banning import BannedTokens
from worker.choice import choice, seed_of
from worker.protocol import GenerationRequest


class TokenRules:
    """Follows one request token by token.

    A request with a seed draws the same numbers whatever else is in its batches.
    """

    def __init__(self, request: GenerationRequest) -> None:
        sampling = request.sampling
        self.choice = choice(sampling)
        self.log_probs = sampling.log_probs
        self.token_bias = sampling.token_bias
        self.repetition_penalty = sampling.repetition_penalty or 1.0
        self.presence_penalty = sampling.presence_penalty or 0.0
        self.frequency_penalty = sampling.frequency_penalty or 0.0
        self.prompt: Sequence[int] = request.input_ids
        self.generated: list[int] = []
        self._random = random.Random(seed_of(sampling))
        has_bans = bool(sampling.bad_words or sampling.min_tokens)
        self._bans = BannedTokens(sampling, request.input_ids) if has_bans else None

    @property
    def penalised(self) -> bool:
        plain = (1.0, 0.0, 0.0)
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != plain

    @property
    def plain(self) -> bool:
        """Whether the next token is simply the likeliest."""
        more = self.log_probs or self.token_bias or self.penalised or self.banned()
        return self.choice.greedy and not more

    def banned(self) -> frozenset[int]:
        """The tokens that must not come next."""
        return self._bans.next() if self._bans else frozenset()

    def uniform(self) -> float:
        """The next number of this request, from 0 up to but without 1."""
        return self._random.random()

    def append(self, token: int) -> None:
        self.generated.append(token)
        if self._bans:
            self._bans.append(token)
