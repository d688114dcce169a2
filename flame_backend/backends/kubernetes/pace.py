"""How fast runners are created: bursts are fine, storms are not. Pure."""

from __future__ import annotations

from typing import Final

CREATES_PER_SECOND: Final = 20.0
CREATES_AT_ONCE: Final = 30
"""The limits of Kubernetes' own controllers (kube-controller-manager, kube-api-qps)."""

AGAIN_SECONDS: Final = 1.0
AGAIN_MAX_SECONDS: Final = 10.0


class Pace:
    """A bucket of tokens: one for each request, refilled at a rate.

    Args:
        now: This moment.
        rate: Tokens that come in each second.
        burst: Tokens it holds, and begins with.
    """

    def __init__(
        self,
        now: float,
        rate: float = CREATES_PER_SECOND,
        burst: int = CREATES_AT_ONCE,
    ) -> None:
        self._rate = rate
        self._burst = burst
        # The moment at which the bucket is or was full.
        self._full_at = now

    def turn(self, now: float) -> float:
        """Take a token; return the seconds until it is there, 0.0 for at once."""
        self._full_at = max(self._full_at, now) + 1 / self._rate
        return max(0.0, self._full_at - now - self._burst / self._rate)


def pause_before(attempt: int, asked: float | None, random: float) -> float:
    """Return the seconds before a refused request is tried again.

    Args:
        attempt: Tries so far, from 1.
        asked: What the server asked for (Retry-After), if anything.
        random: Uniform in [0, 1): callers that were refused together come apart.
    """
    ours = min(AGAIN_MAX_SECONDS, AGAIN_SECONDS * 2.0 ** (attempt - 1))
    return (asked or 0.0) + ours * (0.5 + random / 2)
