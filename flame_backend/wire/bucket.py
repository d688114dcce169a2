"""How much of something may happen: so much at once, and so much a second. Pure."""

from __future__ import annotations

import math


class Bucket:
    """A bucket of tokens that is refilled at a rate; full to begin with.

    Args:
        burst: Tokens it holds.
        rate: Tokens that come in each second.
    """

    __slots__ = ("_burst", "_full_at", "_rate")

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        # The moment at which it is or was full.
        self._full_at = -math.inf

    def take(self, tokens: float, now: float) -> bool:
        """Take so many tokens, if they are there; else none."""
        missing = max(0.0, self._full_at - now) * self._rate
        if self._burst - missing < tokens:
            return False
        self.spend(tokens, now)
        return True

    def spend(self, tokens: float, now: float) -> float:
        """Take so many, there or not; return the seconds until they all are, or 0.0."""
        self._full_at = max(self._full_at, now) + tokens / self._rate
        return max(0.0, self._full_at - now - self._burst / self._rate)
