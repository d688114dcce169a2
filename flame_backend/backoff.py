"""How a pause grows with each failure. Pure."""

from __future__ import annotations


def doubled(first: float, times: int, most: float) -> float:
    """Return the first pause, doubled some times, and no longer than most.

    However often: after a thousand doublings there is no such number any more.
    """
    return min(most, first * 2.0 ** min(times, 100))
