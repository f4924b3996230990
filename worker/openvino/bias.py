"""Logit bias as far as the engine can carry it out: tokens that never come, or that alone may come."""

from __future__ import annotations

from collections.abc import Sequence

from worker.protocol import Status
from worker.validate import RequestRefused

# A bias of this size outweighs every difference between logits; OpenAI's API ends here too.
DECISIVE = 100.0


def barred_by_bias(token_bias: Sequence[tuple[int, float]], vocab_size: int) -> frozenset[int]:
    """The tokens that a bias rules out.

    The engine samples by itself and adds nothing to logits, but it can bar tokens. So -100 and below bars
    a token, and an equal bias of 100 or above on some tokens bars all others.

    Raises:
        RequestRefused: a bias in between, which only shifts the odds.
    """
    for token, bias in token_bias:
        if abs(bias) < DECISIVE:
            raise _refused(f"it is {bias:g} for token {token}")
    preferred = {token: bias for token, bias in token_bias if bias > 0}
    if len(set(preferred.values())) > 1:
        raise _refused("it prefers tokens to a different degree")
    if preferred:
        return frozenset(range(vocab_size)) - preferred.keys()
    return frozenset(token for token, _ in token_bias)


def _refused(found: str) -> RequestRefused:
    return RequestRefused(
        f"embedding_bias: {found}; this engine can only forbid tokens ({-DECISIVE:g} or less) or allow none "
        f"but some (one value of {DECISIVE:g} or more).",
        status=Status.UNSUPPORTED,
        code="bias_not_decisive",
    )
