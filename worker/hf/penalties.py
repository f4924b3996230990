"""How often each request with a penalty has had each token, kept on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.hf.rules import TokenRules


class PenaltyTable:
    """A row a penalised request, taken at its first token and given back at its end.

    As in other engines, repetition_penalty counts prompt and answer, the other two the answer alone.
    """

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        self._seen = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)
        self._counts = torch.zeros((0, vocab_size), dtype=torch.float32, device=device)
        self._free: list[int] = []
        self._rows: dict[TokenRules, int] = {}
        self._counted: dict[TokenRules, int] = {}

    def apply(self, scores: Tensor, rules: Sequence[TokenRules]) -> Tensor:
        """A copy of `scores` [N, V] with the penalties of each request."""
        places = [place for place, one in enumerate(rules) if one.penalised]
        adjusted = scores.clone()
        if places:
            penalised = [rules[place] for place in places]
            adjusted[places] = self._penalise(adjusted[places], penalised, self._count(penalised))
        return adjusted

    def drop(self, rules: TokenRules) -> None:
        """Forget a request that has ended."""
        row = self._rows.pop(rules, None)
        if row is not None:
            del self._counted[rules]
            self._free.append(row)

    def _count(self, rules: Sequence[TokenRules]) -> Tensor:
        """Count in what has come since the last time; the rows of these requests."""
        for one in rules:
            if one not in self._rows:
                self._take_row(one)
        news = [(self._rows[one], token) for one in rules for token in one.generated[self._counted[one] :]]
        if news:
            rows, tokens = torch.tensor(news, device=self._counts.device).unbind(-1)
            self._seen[rows, tokens] = True
            ones = torch.ones(len(news), device=self._counts.device)
            self._counts.index_put_((rows, tokens), ones, accumulate=True)
        self._counted.update((one, len(one.generated)) for one in rules)
        return torch.tensor([self._rows[one] for one in rules], device=self._counts.device)

    def _take_row(self, rules: TokenRules) -> None:
        if not self._free:
            size = len(self._counts)
            added = max(size, 1)
            self._seen = torch.cat([self._seen, self._seen.new_zeros((added, self._seen.shape[1]))])
            self._counts = torch.cat([self._counts, self._counts.new_zeros((added, self._counts.shape[1]))])
            self._free = list(range(size, size + added))
        row = self._free.pop()
        self._rows[rules], self._counted[rules] = row, 0
        # Cleared here, not where it was given back: only this runs in the stream that computes.
        self._seen[row], self._counts[row] = False, 0.0
        self._seen[row, torch.tensor(list(rules.prompt), device=self._seen.device)] = True

    def _penalise(self, scores: Tensor, rules: Sequence[TokenRules], rows: Tensor) -> Tensor:
        repetition = _columns(scores, [one.repetition_penalty for one in rules])
        presence = _columns(scores, [one.presence_penalty for one in rules])
        frequency = _columns(scores, [one.frequency_penalty for one in rules])
        counts = self._counts[rows]
        repeated = torch.where(scores < 0, scores * repetition, scores / repetition)
        scores = torch.where(self._seen[rows], repeated, scores)
        return scores - presence * (counts > 0) - frequency * counts


def _columns(scores: Tensor, values: Sequence[float]) -> Tensor:
    """[N, 1] beside `scores`."""
    return torch.tensor(values, dtype=scores.dtype, device=scores.device).unsqueeze(-1)
