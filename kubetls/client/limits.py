"""Limits of time that callers set, judged when they are set.

Found out later, `timeout=30` in place of a `Timeout` would look like a broken server,
and a retry policy that is none would show with the first failure. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from kubetls.errors import ConfigError

LONGEST_SECONDS: Final = 2_000_000.0
"""23 days; poll(2) counts milliseconds in 31 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """Seconds that one exchange may take in each phase; None waits for ever.

    Attributes:
        connect: TCP and TLS together with each of their steps.
        read: Between two arrivals of data. The API server ends requests after 60 s.

    Raises:
        ConfigError: One is no number of seconds, or not more than 0.
    """

    connect: float | None = 10.0
    read: float | None = 60.0

    def __post_init__(self) -> None:
        for name, value in (("connect", self.connect), ("read", self.read)):
            if value is not None and not (
                is_number(value) and 0 < value <= LONGEST_SECONDS
            ):
                reason = f"seconds, more than 0, at most {LONGEST_SECONDS:.0f}, or None"
                raise ConfigError(f"Timeout.{name}", reason)


def require_timeout(value: object) -> None:
    """Refuse what is no `Timeout`.

    Raises:
        ConfigError: It is none; numbers and pairs mean different things elsewhere.
    """
    if not isinstance(value, Timeout):
        raise ConfigError("timeout", "must be kubetls.Timeout(connect=..., read=...)")


def is_number(value: object) -> bool:
    """Tell whether a value is a number with a size; True is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def waiting_seconds(timeout: float) -> float:
    """Return what a lock can be waited for; what is over by now is 0.

    Raises:
        ConfigError: Not a number.
    """
    if math.isnan(timeout):
        raise ConfigError("timeout", "not a number")
    return min(max(timeout, 0.0), LONGEST_SECONDS)
