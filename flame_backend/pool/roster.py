"""The runners of a pool: which exist, which have room, which rest.

Keeps every count and order that growing, shrinking and placing ask for, so that each
of these is answered without a walk over the runners.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flame_backend.pool.commands import Sizing

LIFE_SPREAD: Final = 0.1
"""Share of a life by which the shortest one is shorter: runners that began together are
not all replaced at the same moment."""

_GOLDEN: Final = (5**0.5 - 1) / 2
"""Multiples of it, less their whole parts, keep well apart, however many there are."""


class Runner:
    """One runner.

    Attributes:
        name: Its name.
        born: When its boot began.
        ready: Its boot is over.
        served: A slot of it has opened.
        draining: It takes no more calls, and ends with its last one.
        suspect: Nothing is heard of it; no call goes there until something is.
        failures: Slots in a row that ended before they opened.
        idle: Slots without a call.
        running: Calls by slot.
        renewing: Slots whose process ends because it has run enough calls.
        tasks: Calls that each slot has run; kept only with max_tasks_per_child.
        load: Calls it runs, while it has an idle slot; -1 otherwise.
        reason: Why it is draining.
    """

    __slots__ = (
        "born", "draining", "failures", "idle", "load", "name", "ready", "reason",
        "renewing", "running", "served", "suspect", "tasks",
    )  # fmt: skip

    def __init__(self, name: str, born: float) -> None:
        self.name = name
        self.born = born
        self.ready = False
        self.served = False
        self.draining = False
        self.suspect = False
        self.reason = ""
        self.failures = 0
        self.idle: dict[int, None] = {}
        self.running: dict[int, int] = {}
        self.renewing: set[int] = set()
        self.tasks: dict[int, int] = {}
        self.load = -1

    @property
    def state(self) -> str:
        """Its state, in one word."""
        if self.draining:
            return "draining"
        if not self.ready:
            return "booting"
        if self.suspect:
            return "suspect"
        return "busy" if self.running else "idle"


class Roster:
    """All runners of a pool.

    Attributes:
        runners: All of them by name, oldest boot first.
        serving: Those that are not draining and can take calls, longest first, each
            with the moment at which it has done so for long enough.
        ageing: These moments and names, soonest first.
        resting: Since when the runners without a call have been so, longest first.
        alive: Runners that are not draining.
        busy: Calls that run on those.
        opening: Slots of those that are neither idle nor busy.
        suspects: Those of which nothing is heard.
    """

    def __init__(self, sizing: Sizing) -> None:
        self._slots = sizing.slots
        self._pack = sizing.placement == "pack"
        # Runners that have an idle slot, by the number of calls they run.
        self._free: list[dict[str, Runner]] = [{} for _ in range(sizing.slots)]
        self._order = self._free[::-1] if self._pack else self._free
        life = sizing.max_lifetime
        self._life = float("inf") if life is None else life
        self._served = 0
        self.runners: dict[str, Runner] = {}
        self.serving: dict[str, float] = {}
        self.ageing: list[tuple[float, str]] = []
        self.resting: dict[str, float] = {}
        self.alive = 0
        self.busy = 0
        self.opening = 0
        self.suspects: dict[str, Runner] = {}

    def __len__(self) -> int:
        return len(self.runners)

    @property
    def booting(self) -> int:
        """Runners of which no slot has opened yet."""
        return self.alive - len(self.serving)

    @property
    def idle(self) -> int:
        """Slots that could take a call at once."""
        unsure = sum(len(found.idle) for found in self.suspects.values())
        return self.alive * self._slots - self.busy - self.opening - unsure

    # ------------------------------------------------------------------ slots

    def take(self, call: int) -> tuple[str, int] | None:
        """Have the next call run on an idle slot; None when there is none.

        Among equals the runner that was used last gets it: the others may rest.
        """
        for free in self._order:
            if free:
                # As `occupy`, in fewer steps: this is the way of nearly every call.
                name, runner = free.popitem()
                slot, _ = runner.idle.popitem()
                running = runner.running
                if not running:
                    self.resting.pop(name, None)
                running[slot] = call
                self.busy += 1
                runner.load = -1
                if runner.idle:
                    self._rank(runner)
                return name, slot
        return None

    def occupy(self, runner: Runner, slot: int, call: int) -> None:
        """Note that a slot, idle no more, runs a call."""
        if not runner.running:
            self.resting.pop(runner.name, None)
        runner.running[slot] = call
        self.busy += 1
        self._rank(runner)

    def vacate(self, runner: Runner, slot: int, now: float) -> None:
        """Note that a slot's call ended; the slot's next state is another matter."""
        del runner.running[slot]
        if not runner.draining:
            self.busy -= 1
            self.opening += 1
            if not runner.running:
                self.resting[runner.name] = now

    def settle(self, runner: Runner, slot: int, now: float) -> None:
        """Note that a slot which was opening, or vacated, is idle."""
        self.opening -= 1
        runner.idle[slot] = None
        if not runner.running and runner.name not in self.resting:
            self.resting[runner.name] = now
        self._rank(runner)

    def free(self, runner: Runner, slot: int, now: float) -> None:
        """Note that a slot's call ended, and that it is idle: `vacate` and `settle`."""
        running = runner.running
        del running[slot]
        self.busy -= 1
        runner.idle[slot] = None
        if running:
            self._rank(runner)
            return
        name = runner.name
        self.resting[name] = now
        if runner.suspect:
            return
        # As `_rank`, in fewer steps.
        if runner.load > 0:
            del self._free[runner.load][name]
        self._free[0][name] = runner
        runner.load = 0

    def seize(self, runner: Runner, slot: int, call: int) -> None:
        """Note that a slot which was opening, or vacated, runs a call."""
        self.opening -= 1
        self.occupy(runner, slot, call)

    def unsettle(self, runner: Runner, slot: int) -> None:
        """Note that an idle slot is gone, and opening again."""
        del runner.idle[slot]
        self.opening += 1
        self._rank(runner)

    # ------------------------------------------------------------------ runners

    def add(self, name: str, now: float) -> None:
        """Note that a runner boots."""
        self.runners[name] = Runner(name, now)
        self.alive += 1
        self.opening += self._slots

    def serve(self, runner: Runner, now: float) -> None:
        """Note that the first slot of a runner has opened."""
        runner.served = True
        share = LIFE_SPREAD * (self._served * _GOLDEN % 1.0)
        self._served += 1
        ends = self.serving[runner.name] = now + self._life * (1.0 - share)
        insort(self.ageing, (ends, runner.name))

    def suspect(self, runner: Runner) -> None:
        """Give a runner no calls for now; it keeps those it has."""
        runner.suspect = True
        self.suspects[runner.name] = runner
        self._rank(runner)

    def clear_suspect(self, runner: Runner) -> None:
        """Give a runner calls again."""
        runner.suspect = False
        self.suspects.pop(runner.name, None)
        self._rank(runner)

    def retire(self, runner: Runner, reason: str) -> None:
        """Give a runner no more calls."""
        self._leave(runner)
        runner.draining = True
        runner.reason = reason
        runner.idle.clear()
        self._rank(runner)

    def remove(self, runner: Runner) -> None:
        """Forget a runner."""
        if not runner.draining:
            self._leave(runner)
        del self.runners[runner.name]
        runner.idle.clear()
        self._rank(runner)

    def clear(self) -> list[str]:
        """Forget all runners; return their names."""
        names = list(self.runners)
        for runner in list(self.runners.values()):
            self.remove(runner)
        return names

    def living(self) -> Iterator[Runner]:
        """Yield the runners that are not draining, oldest first."""
        return (found for found in self.runners.values() if not found.draining)

    # ------------------------------------------------------------------ inside

    def _leave(self, runner: Runner) -> None:
        """Take a runner out of the counts."""
        self.alive -= 1
        self.busy -= len(runner.running)
        self.opening -= self._slots - len(runner.idle) - len(runner.running)
        self.suspects.pop(runner.name, None)
        ends = self.serving.pop(runner.name, None)
        if ends is not None:
            del self.ageing[bisect_left(self.ageing, (ends, runner.name))]
        self.resting.pop(runner.name, None)

    def _rank(self, runner: Runner) -> None:
        """Put a runner among those of its load, if a call could go there."""
        load = len(runner.running) if runner.idle and not runner.suspect else -1
        if load == runner.load:
            return
        if runner.load >= 0:
            del self._free[runner.load][runner.name]
        if load >= 0:
            self._free[load][runner.name] = runner
        runner.load = load
