"""What the adapter needs of an engine that computes one batch after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.hf.rules import TokenRules


@dataclass(frozen=True)
class Computed:
    """What a step did for one request: `token` is None while its prompt is still being read."""

    name: str
    token: int | None = None
    log_prob: float | None = None
    ended: bool = False


class Engine(Protocol):
    """Requests by name; all methods are called by one thread."""

    def add(
        self, name: str, prompt: Sequence[int], max_tokens: int, end_id: int | None, rules: TokenRules
    ) -> None:
        """Queue a request. `rules` says how its tokens are chosen."""

    def cancel(self, name: str) -> None:
        """Drop a request at the next step."""

    def step(self) -> list[Computed]:
        """Compute one batch. Raises whatever the engine raises; no request survives that until `restart`."""

    def restart(self, error: Exception) -> None:
        """After a failed step: drop every request and be ready for new ones. Raises when that fails too."""

    @property
    def cancelling(self) -> bool:
        """Whether cancelled requests still hold memory that the next step frees."""

    def kv_used_fraction(self) -> float:
        """Share of the KV cache that running requests hold."""
