"""Which runners may go, and when: by age and by rest."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flame_backend.pool.commands import Sizing
    from flame_backend.pool.roster import Roster, Runner


def old_runners(roster: Roster, now: float) -> list[Runner]:
    """Return the runners that have served for long enough.

    Boots have a clock of their own, which may stand still for longer than a life.
    """
    old = takewhile(lambda found: found[0] <= now, roster.ageing)
    return [roster.runners[name] for _, name in old]


def all_rested(roster: Roster, sizing: Sizing, now: float) -> bool:
    """Tell whether all runners may end, as none has had a call for long enough."""
    moment = _all_rest(roster, sizing)
    return moment is not None and moment <= now


def surplus_runners(
    roster: Roster, sizing: Sizing, kept: int, now: float
) -> list[Runner]:
    """Take out the runners beyond those kept that have rested for long enough.

    Args:
        roster: The runners.
        sizing: The pool's.
        kept: Runners that stay.
        now: This moment.
    """
    taken = []
    while (moment := _surplus_rests(roster, sizing, kept)) is not None:
        if moment > now:
            break
        found = roster.runners[next(iter(roster.resting))]
        roster.remove(found)
        taken.append(found)
    return taken


def next_end(
    roster: Roster, sizing: Sizing, kept: int, *, called: bool
) -> float | None:
    """Return the moment at which one of the above has something to say.

    Args:
        roster: The runners.
        sizing: The pool's.
        kept: Runners that stay.
        called: Calls wait, so that no runner rests.
    """
    moments = [_oldest_ages(roster)]
    if not called:
        moments += [_surplus_rests(roster, sizing, kept), _all_rest(roster, sizing)]
    return min((found for found in moments if found is not None), default=None)


def _surplus_rests(roster: Roster, sizing: Sizing, kept: int) -> float | None:
    """Return when the runner that rests longest may end, being one too many."""
    if sizing.idle_after is None or not roster.resting or roster.alive <= kept:
        return None
    spare = roster.idle + roster.opening - sizing.slots
    if roster.busy and spare < sizing.buffer:
        return None
    return next(iter(roster.resting.values())) + sizing.idle_after


def _all_rest(roster: Roster, sizing: Sizing) -> float | None:
    """Return when all runners may end."""
    if sizing.min_idle_after is None or not roster.resting:
        return None
    if len(roster.resting) < len(roster):
        return None
    return next(reversed(roster.resting.values())) + sizing.min_idle_after


def _oldest_ages(roster: Roster) -> float | None:
    """Return when the first runner has served for long enough."""
    if not roster.ageing or roster.ageing[0][0] == float("inf"):
        return None
    return roster.ageing[0][0]
