"""Change an object that others change as well: get, change, put, and again."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Final

from kubetls.client.retry import doubled
from kubetls.errors import ConfigError, Conflict

if TYPE_CHECKING:
    from collections.abc import Callable

CONFLICT_SECONDS: Final = 0.01
"""First pause after a conflict, as client-go's RetryOnConflict; it doubles."""

CONFLICT_MAX_SECONDS: Final = 1.0
"""Objects that many write are free again sooner than that."""


def update_object(
    get: Callable[[], dict[str, Any]],
    put: Callable[[dict[str, Any]], dict[str, Any]],
    fn: Callable[[dict[str, Any]], dict[str, Any] | None],
    attempts: int,
) -> dict[str, Any]:
    """Put what `fn` makes of what is there; begin again after a conflict.

    Raises:
        Conflict: Others were faster, every time.
        ConfigError: `fn` took the resourceVersion out, which tells them apart, or
            returned no object.
    """
    if type(attempts) is not int or attempts < 1:
        raise ConfigError("attempts", "a whole number of tries, 1 or more")
    for attempt in range(1, attempts + 1):
        obj = get()
        changed = fn(obj)
        wanted = obj if changed is None else changed
        metadata = wanted.get("metadata") if isinstance(wanted, dict) else None
        if not isinstance(metadata, dict) or not metadata.get("resourceVersion"):
            reason = "must return None or an object with metadata.resourceVersion"
            raise ConfigError("fn", reason)
        try:
            return put(wanted)
        except Conflict:
            if attempt == attempts:
                raise
        time.sleep(pause_after(attempt, random.random()))  # noqa: S311 - no secret
    raise AssertionError  # the last attempt returns or raises


def pause_after(attempt: int, jitter: float) -> float:
    """Return the seconds to wait after a conflict.

    Args:
        attempt: Tries so far, from 1.
        jitter: Uniform in [0, 1): writers that collided come apart.
    """
    pause = doubled(CONFLICT_SECONDS, attempt - 1, CONFLICT_MAX_SECONDS)
    return pause * (1 + jitter)
