"""Requests a minute for each key: a token bucket that starts full."""

from __future__ import annotations

import math
import time

from proxy.http import TooManyRequests


class RateLimiter:
    """A bucket a key, of one minute's requests."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def refusal(self, name: str, per_minute: float) -> TooManyRequests | None:
        """Take one request from the bucket of `name`, or say when the next will be allowed."""
        now = time.monotonic()
        level, last = self._buckets.get(name, (max(1.0, per_minute), now))
        level = min(max(1.0, per_minute), level + (now - last) * per_minute / 60)
        if level < 1:
            self._buckets[name] = (level, now)
            wait = (1 - level) * 60 / per_minute
            return TooManyRequests(
                "This key has used up its requests for this minute.",
                hint=f"Wait {wait:.1f} seconds.",
                retry_after=math.ceil(wait),
            )
        self._buckets[name] = (level - 1, now)
        return None
