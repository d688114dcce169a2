"""How many runners calls need: what is lacking, and which boots nobody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame_backend.pool.breaker import Breaker
from flame_backend.pool.commands import Boot

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.pool.commands import Command, Sizing
    from flame_backend.pool.roster import Roster, Runner


class Growth:
    """The size of a pool, and the boots that bring it there.

    Args:
        name: The pool's name; runners are named after it.
        sizing: How large it is made.
        roster: Its runners.
        suffix: Gives a fresh suffix for each runner's name.
        spread: Gives numbers from 0 to 1, for pauses between boots.

    Attributes:
        min: Runners that are kept.
        max: Most runners.
        warming: Runners that are kept beyond min while somebody waits for them.
        asleep: None is kept, as nobody calls.
        breaker: The boots that failed.
    """

    def __init__(
        self,
        name: str,
        sizing: Sizing,
        roster: Roster,
        suffix: Callable[[], str],
        spread: Callable[[], float],
    ) -> None:
        self._name = name
        self._sizing = sizing
        self._roster = roster
        self._suffix = suffix
        self._spare = SpareBoots(roster, sizing)
        self.min = sizing.min
        self.max = sizing.max
        self.warming = 0
        self.asleep = False
        self.breaker = Breaker(spread)

    @property
    def most_kept(self) -> int:
        """Runners that stay while the pool is awake."""
        return max(self.min, self.warming)

    @property
    def kept(self) -> int:
        """Runners that there are to be without any call."""
        return 0 if self.asleep else self.most_kept

    def wanted(self, waiting: int) -> int:
        """Return how many runners more there should be for so many waiting calls."""
        room = self.max - len(self._roster)
        if room <= 0:
            return 0
        lacking = lacking_runners(self._roster, self._sizing, waiting, self.kept)
        return min(room, lacking)

    def boots(self, waiting: int, now: float) -> list[Command]:
        """Begin the boots that are wanted, as far as earlier ones succeeded."""
        self.weigh(waiting, now)
        wanted = self.wanted(waiting)
        if wanted and self.breaker.failures:
            # One runner tells whether boots succeed again.
            wait = bool(self._roster.booting) or now < self.breaker.retry_at
            wanted = 0 if wait else 1
        commands: list[Command] = []
        for _ in range(wanted):
            name = f"{self._name}-{self._suffix()}"
            self._roster.add(name, now)
            commands.append(Boot(name))
        return commands

    def weigh(self, waiting: int, now: float) -> None:
        """Note whether boots are under way that nobody needs."""
        self._spare.weigh(waiting, self.kept, now)

    def unneeded(self, waiting: int, now: float) -> list[Runner]:
        """Return the boots that nobody has needed for long enough."""
        self.weigh(waiting, now)
        return self._spare.taken(waiting, self.kept, now)

    def next_moment(self, waiting: int) -> float | None:
        """Return when boots begin again, or spare ones end; None for never."""
        moments = [self._spare.ends_at()]
        paused = self.breaker.failures and not self._roster.booting
        if paused and self.wanted(waiting):
            moments.append(self.breaker.retry_at)
        return min((found for found in moments if found is not None), default=None)


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
