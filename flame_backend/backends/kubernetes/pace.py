"""How fast runners are created, and asked for again: no storms. Pure."""

from __future__ import annotations

from typing import Final

from flame_backend.backoff import doubled

CREATES_PER_SECOND: Final = 20.0
CREATES_AT_ONCE: Final = 30
"""The limits of Kubernetes' own controllers (kube-controller-manager, kube-api-qps)."""

AGAIN_SECONDS: Final = 1.0
AGAIN_MAX_SECONDS: Final = 10.0

SETTLE_SECONDS: Final = AGAIN_MAX_SECONDS + 5.0
"""How long after an outage a refused right means nothing yet.

An API server that has just started takes requests before it has read the roles
it judges them by. The longest pause between two tries, and what the reading takes.
"""


def pause_before(attempt: int, asked: float | None, random: float) -> float:
    """Return the seconds before a refused request is tried again.

    Args:
        attempt: Tries so far, from 1.
        asked: What the server asked for (Retry-After), if anything.
        random: Uniform in [0, 1): callers that were refused together come apart.
    """
    ours = doubled(AGAIN_SECONDS, attempt - 1, AGAIN_MAX_SECONDS)
    return (asked or 0.0) + ours * (0.5 + random / 2)
