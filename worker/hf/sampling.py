"""The arithmetic of choosing tokens, for all requests of a batch at once. Shapes: N requests, V token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.hf.penalties import PenaltyTable
from worker.hf.rules import TokenRules

# Up to here the best tokens are found without sorting the vocabulary.
LARGEST_SHORTLIST = 1024


@dataclass(frozen=True)
class Chosen:
    """`tokens` [N] and the model's own log probability of each, before penalties, temperature and cuts."""

    tokens: Tensor
    log_probs: Tensor | None


def choose(scores: Tensor, rules: Sequence[TokenRules], penalties: PenaltyTable) -> Chosen:
    """Choose a token for each row of `scores` [N, V] by the rules of its request."""
    adjusted = penalties.apply(scores, rules)
    _add_bias(adjusted, rules)
    _ban(adjusted, [one.banned() for one in rules])
    tokens = adjusted.argmax(dim=-1)
    for rows in _groups(rules):
        tokens[rows] = draw(adjusted[rows], [rules[row] for row in rows])
    wanted = any(one.log_probs for one in rules)
    return Chosen(tokens, _log_probs(scores, tokens) if wanted else None)


def draw(scores: Tensor, rules: Sequence[TokenRules]) -> Tensor:
    """Draw a token for each row of `scores` [N, V], by one uniform number each: its place among the tokens in
    falling order of probability, of which top_k and top_p keep the first."""
    place_of = _columns(scores, [one.uniform() for one in rules])
    temperature = _columns(scores, [one.choice.temperature for one in rules])
    top_p = _columns(scores, [one.choice.top_p for one in rules])
    size = scores.shape[-1]
    top_k = [min(one.choice.top_k or size, size) for one in rules]
    best, order = _descending(scores, max(top_k))
    ranks = torch.arange(best.shape[-1], device=scores.device)
    # The largest is subtracted first, so that no temperature is too small to divide by.
    scaled = (best - best[:, :1]) / temperature
    scaled = scaled.masked_fill(ranks >= _columns(scores, top_k), -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    reached = probabilities.cumsum(dim=-1)
    kept = (((reached - probabilities) < top_p) & (probabilities > 0)).sum(dim=-1, keepdim=True) - 1
    target = place_of * reached.gather(-1, kept)
    place = torch.minimum((reached <= target).sum(dim=-1, keepdim=True), kept)
    return order.gather(-1, place).squeeze(-1)


def _descending(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of each row and their token ids."""
    shortlist = count <= LARGEST_SHORTLIST
    best, order = scores.topk(count) if shortlist else scores.sort(dim=-1, descending=True)
    return best, order


def _groups(rules: Sequence[TokenRules]) -> Iterable[list[int]]:
    """The rows to draw for: those with a short list, then those that need the whole vocabulary in order."""
    drawn = [row for row, one in enumerate(rules) if not one.choice.greedy]
    short = [row for row in drawn if 0 < rules[row].choice.top_k <= LARGEST_SHORTLIST]
    long = [row for row in drawn if row not in set(short)]
    return [rows for rows in (short, long) if rows]


def _columns(scores: Tensor, values: Sequence[float]) -> Tensor:
    """[N, 1] beside `scores`."""
    return torch.tensor(values, dtype=scores.dtype, device=scores.device).unsqueeze(-1)


def _add_bias(scores: Tensor, rules: Sequence[TokenRules]) -> None:
    pairs = [(row, token) for row, one in enumerate(rules) for token, _ in one.token_bias]
    if pairs:
        rows, tokens = torch.tensor(pairs, device=scores.device).unbind(-1)
        values = [value for one in rules for _, value in one.token_bias]
        scores[rows, tokens] += torch.tensor(values, dtype=scores.dtype, device=scores.device)


def _ban(scores: Tensor, banned: Sequence[frozenset[int]]) -> None:
    pairs = [(row, token) for row, tokens in enumerate(banned) for token in tokens]
    if pairs:
        rows, tokens = torch.tensor(pairs, device=scores.device).unbind(-1)
        scores[rows, tokens] = -torch.inf


def _log_probs(scores: Tensor, tokens: Tensor) -> Tensor:
    chosen = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - scores.logsumexp(dim=-1)
