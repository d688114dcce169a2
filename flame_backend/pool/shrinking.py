"""When runners may go: by rest and by age."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flame_backend.pool.commands import Sizing
    from flame_backend.pool.roster import Roster


def surplus_rests(roster: Roster, sizing: Sizing, kept: int) -> float | None:
    """Return when the runner that rests longest may end, being one too many.

    Args:
        roster: The runners.
        sizing: The pool's.
        kept: Runners that stay.
    """
    if sizing.idle_after is None or not roster.resting or roster.alive <= kept:
        return None
    spare = roster.idle + roster.opening - sizing.slots
    if roster.busy and spare < sizing.buffer:
        return None
    return next(iter(roster.resting.values())) + sizing.idle_after


def pool_rests(roster: Roster, sizing: Sizing) -> float | None:
    """Return when all runners may end, as none of them has had a call for so long."""
    if sizing.min_idle_after is None or not roster.resting:
        return None
    if len(roster.resting) < len(roster):
        return None
    return next(reversed(roster.resting.values())) + sizing.min_idle_after


def oldest_ages(roster: Roster, sizing: Sizing) -> float | None:
    """Return when the runner that serves longest has lived long enough.

    Boots have a clock of their own, which may stand still for longer than a life.
    """
    if sizing.max_lifetime is None or not roster.serving:
        return None
    return next(iter(roster.serving.values())) + sizing.max_lifetime
