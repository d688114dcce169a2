"""Boots that fail: when to try again, and when to tell the callers instead.

After a failure the pool pauses, twice as long each time, and then tries with one runner
alone. When the cause is one that the next boot would meet again, or has come up three
times in a row, the breaker opens: callers that wait, and those that come during the
pause, get the last error at once. The first slot that opens makes all of it good.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from flame_backend.backoff import doubled
from flame_backend.errors import (
    AppImportError,
    AuthRefused,
    BootDenied,
    ContainerConfigError,
    ImagePullError,
    VersionSkew,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.errors import BootError

BOOT_FAILURES: Final = 3
"""Failed boots in a row after which waiting callers are told, not kept."""

PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0

FATAL: Final = (
    AppImportError,
    AuthRefused,
    BootDenied,
    ContainerConfigError,
    ImagePullError,
    VersionSkew,
)
"""What the next boot would meet again."""


class Breaker:
    """The record of failed boots.

    Args:
        spread: Gives numbers from 0 to 1, so that many pools which fail together do
            not come back together.

    Attributes:
        failures: Failures in a row.
        retry_at: No boot before this moment, while there are failures.
        last: The last failure, None when boots succeed.
        open: Callers are told `last` instead of waiting.
    """

    def __init__(self, spread: Callable[[], float]) -> None:
        self._spread = spread
        self._failed_at = -math.inf
        self.failures = 0
        self.retry_at = -math.inf
        self.last: BootError | None = None
        self.open = False

    def failed(self, error: BootError, born: float, now: float) -> None:
        """Note that a boot which began at `born` has failed.

        Boots that were under way together and fail together have one cause, and count
        once.
        """
        self.last = error
        fatal = isinstance(error, FATAL)
        if born >= self._failed_at or (fatal and not self.open):
            self._failed_at = now
            self.failures += 1
            pause = doubled(PAUSE_SECONDS, self.failures - 1, LONGEST_PAUSE_SECONDS)
            self.retry_at = now + pause * (1.0 + 0.25 * self._spread())
        if fatal or self.failures >= BOOT_FAILURES:
            self.open = True

    def succeeded(self) -> None:
        """Note that a slot opened."""
        self.failures = 0
        # What fails next is counted, however early it began: only a counted failure
        # has a moment at which it is tried again.
        self._failed_at = -math.inf
        self.last = None
        self.open = False
