"""Penalties, bias, bad words and minimum lengths, as a logits processor of TensorRT-LLM.

Its own sampler for PyTorch had none of them before 1.3 and passes over what it does not know, so they are
carried out here, for the requests that ask for them. It is sent to the process that samples, so it must be
small, and it imports no PyTorch: whatever has tensors with the usual indexing will do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.banning import BannedTokens
from worker.protocol import Sampling


@dataclass(frozen=True)
class Restrictions:
    """Called before each token of one request; changes its logits in place."""

    sampling: Sampling
    prompt_tokens: int

    def __call__(
        self,
        req_id: int,
        logits: Any,
        token_ids: Sequence[Sequence[int]],
        stream_ptr: int | None,
        client_id: int | None,
    ) -> None:
        """`logits` ends in [beams, vocabulary]; `token_ids` are the prompt and what came, a list a beam."""
        rows = logits.reshape(-1, logits.shape[-1])
        for row, tokens in zip(rows, token_ids, strict=False):
            self._penalise(row, tokens)
            for token, bias in self.sampling.token_bias:
                row[token] += bias
            banned = self._banned(tokens)
            if banned:
                row[banned] = float("-inf")

    def _banned(self, tokens: Sequence[int]) -> list[int]:
        rules = BannedTokens(self.sampling, tokens[: self.prompt_tokens])
        for token in tokens[self.prompt_tokens :]:
            rules.append(token)
        return sorted(rules.next())

    def _penalise(self, row: Any, tokens: Sequence[int]) -> None:
        repetition = self.sampling.repetition_penalty or 1.0
        if repetition != 1.0:
            seen = sorted(set(tokens))
            scores = row[seen]
            positive = scores > 0
            row[seen] = scores * (positive / repetition + ~positive * repetition)
        presence = self.sampling.presence_penalty or 0.0
        frequency = self.sampling.frequency_penalty or 0.0
        if presence or frequency:
            for count, same in _by_count(tokens[self.prompt_tokens :]).items():
                row[same] -= presence + frequency * count


def restrictions(sampling: Sampling, prompt_tokens: int) -> Restrictions | None:
    """None for a request that needs none."""
    penalties = (sampling.repetition_penalty or 1.0) != 1.0 or bool(
        sampling.presence_penalty or sampling.frequency_penalty
    )
    has_minimum = sampling.min_tokens > 0 and sampling.end_id is not None
    if penalties or has_minimum or sampling.bad_words or sampling.token_bias:
        return Restrictions(sampling, prompt_tokens)
    return None


def _by_count(tokens: Sequence[int]) -> dict[int, list[int]]:
    """How often tokens came, and which."""
    groups: dict[int, list[int]] = {}
    for token, count in Counter(tokens).items():
        groups.setdefault(count, []).append(token)
    return groups
