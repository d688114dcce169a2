"""How many runners calls need: what is lacking, and which boots nobody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flame_backend.pool.commands import Sizing
    from flame_backend.pool.roster import Roster, Runner


def lacking_slots(roster: Roster, sizing: Sizing, waiting: int) -> int:
    """Return how many slots are needed beyond those that are there or coming.

    Negative when there are more than calls and the buffer need.
    """
    lacking = waiting - roster.idle - roster.opening
    if sizing.buffer and (roster.busy or waiting):
        lacking += sizing.buffer
    return lacking


def lacking_runners(roster: Roster, sizing: Sizing, waiting: int, kept: int) -> int:
    """Return how many runners should be booted.

    Args:
        roster: The runners.
        sizing: The pool's.
        waiting: Calls that wait.
        kept: Runners that there are to be in any case.
    """
    lacking = lacking_slots(roster, sizing, waiting)
    return max(0, -(-lacking // sizing.slots), kept - roster.alive)


class SpareBoots:
    """Boots that nobody needs any more, since their callers gave up or found a slot.

    They may go on for as long as an idle runner may rest: who gave up waiting often
    comes again, and a pool that gave up each boot with its caller might never serve.

    Args:
        roster: The runners.
        sizing: The pool's.
    """

    def __init__(self, roster: Roster, sizing: Sizing) -> None:
        self._roster = roster
        self._sizing = sizing
        self._since: float | None = None

    def weigh(self, waiting: int, kept: int, now: float) -> None:
        """Note since when there are any; called whenever calls or runners change.

        Args:
            waiting: Calls that wait.
            kept: Runners that there are to be in any case.
            now: This moment.
        """
        if not self._count(waiting, kept):
            self._since = None
        elif self._since is None:
            self._since = now

    def ends_at(self) -> float | None:
        """Return when they may end, None while there are none."""
        if self._since is None or self._sizing.idle_after is None:
            return None
        return self._since + self._sizing.idle_after

    def taken(self, waiting: int, kept: int, now: float) -> list[Runner]:
        """Return those to end now, the latest ones; arguments as for `weigh`."""
        moment = self.ends_at()
        if moment is None or moment > now:
            return []
        booting = [found for found in self._roster.living() if not found.served]
        self._since = None
        return booting[-self._count(waiting, kept) :]

    def _count(self, waiting: int, kept: int) -> int:
        roster = self._roster
        booting = roster.booting
        if not booting:
            return 0
        lacking = lacking_slots(roster, self._sizing, waiting)
        return max(0, min(booting, -lacking // self._sizing.slots, roster.alive - kept))
