"""One thing that doctor looked at."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: What.
        verdict: ok, warn, fail or skip.
        detail: What was found.
        remedy: What to do; "" when nothing.
    """

    name: str
    verdict: str
    detail: str
    remedy: str = ""
