"""How a token is chosen, with the meaning that TensorRT-LLM's backend gives the parameters."""

from __future__ import annotations

import os
from dataclasses import dataclass

from worker.protocol import Sampling


@dataclass(frozen=True)
class Choice:
    """`top_k` 0 is no limit, `top_p` 1 is no limit; the other values of a greedy choice mean nothing."""

    greedy: bool
    temperature: float
    top_k: int
    top_p: float


def choice(sampling: Sampling) -> Choice:
    """Neither top_k nor top_p, top_k 1 or temperature 0 is greedy; top_k alone is top_k with top_p 1."""
    top_k, top_p = sampling.top_k or 0, max(sampling.top_p or 0.0, 0.0)
    greedy = top_k == 1 or sampling.temperature == 0.0 or (top_k == 0 and top_p == 0.0)
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    return Choice(greedy, temperature, top_k, top_p or 1.0)


def seed_of(sampling: Sampling) -> int:
    """The request's seed; without one every request draws its own."""
    return int.from_bytes(os.urandom(8), "little") if sampling.seed is None else sampling.seed
