"""The pool machine: who waits, which runners exist, what to do next.

Deterministic: no clock, no I/O, no thread. Every method is an event; it changes the
machine's own state in place and returns the commands that follow, for the executor to
carry out. Checkout and checkin are O(1) in runners and in waiting calls.

    a call         waiting -> running -> gone
    a runner       booting -> ready -> (draining) -> gone
    a slot         opening -> idle <-> busy -> opening (again) -> ...

Laws, held by the state machine test: never more than `max` runners; a call is assigned
once, to one idle slot; a slot has one call at most; a call that waits and can no longer
be served is failed; after `close` nothing waits and no runner is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flame_backend.errors import BootError, CallTimeout, PoolClosed, PoolSaturated
from flame_backend.pool.commands import Assign, End, Fail, OpenSlot, Renew
from flame_backend.pool.growing import Growth
from flame_backend.pool.roster import Roster
from flame_backend.pool.shrinking import (
    all_rested,
    next_end,
    old_runners,
    surplus_runners,
)
from flame_backend.pool.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.errors import FlameError
    from flame_backend.pool.commands import Command, Sizing
    from flame_backend.pool.roster import Runner

SLOT_FAILURES: Final = 3
"""Slots of a runner that end in a row before they connect: the runner is of no use."""


class Machine:
    """State of one pool.

    Args:
        name: The pool's name; runners are named after it.
        sizing: How large it is.
        suffix: Gives a fresh suffix for each runner's name.
        spread: Gives numbers from 0 to 1, for pauses between boots.

    Attributes:
        sizing: How large it was made.
        roster: The runners.
        growth: Its size, which changes by `resize`, and the boots that failed.
        closed: Nothing begins any more.
    """

    def __init__(
        self,
        name: str,
        sizing: Sizing,
        suffix: Callable[[], str],
        spread: Callable[[], float],
    ) -> None:
        self.sizing = sizing
        self._waiting = Waiting()
        self._queue = self._waiting.calls
        self.roster = Roster(sizing)
        self.growth = Growth(name, sizing, self.roster, suffix, spread)
        self.closed = False
        # Checked once with each call instead of one by one.
        self._plain = not (sizing.single_use or sizing.max_tasks)
        spreads = sizing.slots == 1 or sizing.placement == "least_loaded"
        self._reuses = self._plain and spreads and not sizing.buffer

    # ------------------------------------------------------------------ calls

    def would_reuse(self, runner: str) -> bool:
        """Tell whether a call that came now would get the slot whose call ends now.

        Then its end need not be told before something else happens.
        """
        if self._queue or not self._reuses:
            return False
        found = self.roster.runners.get(runner)
        if found is None or found.draining or found.suspect:
            return False
        return len(found.running) == 1

    def submit(
        self,
        call: int,
        now: float,
        deadline: float | None = None,
        queue_timeout: float = 0.0,
        *,
        again: bool = False,
    ) -> list[Command]:
        """A call wants a slot.

        Args:
            call: Its number.
            now: This moment.
            deadline: When it stops waiting; None for never.
            queue_timeout: The limit behind the deadline, for the error.
            again: It had a slot and could not start there; it goes first.
        """
        if self.closed:
            return [Fail(call, PoolClosed("the pool was shut down"))]
        taken = self.roster.take(call)
        if taken is not None:
            assigned: list[Command] = [Assign(call, *taken)]
            if self.sizing.buffer or self.roster.booting:
                assigned += self._grown(now)
            return assigned
        refusal = self._refusal(now, again=again)
        if refusal is not None:
            return [Fail(call, refusal)]
        self.growth.asleep = False
        self._waiting.add(call, queue_timeout, deadline, first=again)
        return self._grown(now)

    def finished(self, runner: str, slot: int, now: float) -> list[Command]:
        """A call ended and its slot is free again."""
        found = self.roster.runners.get(runner)
        if found is None or slot not in found.running:
            return []
        if self._plain and not self._queue and not found.draining:
            self.roster.free(found, slot, now)
            if self.roster.booting:
                self._weigh(now)
            return []
        self.roster.vacate(found, slot, now)
        if found.draining:
            return self._drained(found, now)
        self._weigh(now)
        if not self._plain:
            if self.sizing.single_use:
                return self._ended(found, "used", now)
            if self._worn(found, slot):
                found.renewing.add(slot)
                return [Renew(runner, slot), *self._grown(now)]
        return self._freed(found, slot, now)

    def cancel(self, call: int, now: float) -> bool:
        """A waiting call is given up; False when it is not waiting."""
        removed = self._waiting.remove(call)
        self._weigh(now)
        return removed

    # ------------------------------------------------------------------ runners

    def ready(self, runner: str) -> list[Command]:
        """A runner booted; its slots follow one by one."""
        found = self.roster.runners.get(runner)
        if found is None:
            return [End(runner, "failed")]
        found.ready = True
        return []

    def slot_opened(self, runner: str, slot: int, now: float) -> list[Command] | None:
        """A slot can take calls; None when the machine has no use for it."""
        found = self.roster.runners.get(runner)
        if found is None or slot in found.idle or slot in found.running:
            return None
        if found.draining or slot in found.renewing:
            return None
        self.growth.breaker.succeeded()
        found.failures = 0
        if not found.served:
            self.roster.serve(found, now)
        return [*self._freed(found, slot, now), *self._grown(now)]

    def slot_ended(
        self, runner: str, slot: int, now: float, detail: str = ""
    ) -> list[Command]:
        """A slot's process ended; its runner gets another one.

        Args:
            runner: Its runner.
            slot: Its number there.
            now: This moment.
            detail: What is known of the cause, for the error.
        """
        found = self.roster.runners.get(runner)
        if found is None:
            return []
        found.tasks.pop(slot, None)
        if slot in found.running:
            self.roster.vacate(found, slot, now)
            if found.draining:
                return self._drained(found, now)
            if self.sizing.single_use:
                return self._ended(found, "used", now)
        elif found.draining:
            return []
        elif slot in found.idle:
            self.roster.unsettle(found, slot)
        elif slot in found.renewing:
            found.renewing.discard(slot)
        else:
            return self._slot_failed(found, slot, now, detail)
        return [OpenSlot(runner, slot)]

    def draining(self, runner: str, now: float) -> list[Command]:
        """A runner will end: no new calls there; it goes when it has none left."""
        found = self.roster.runners.get(runner)
        if found is None or found.draining:
            return []
        return [*self._retired(found, "drained"), *self._grown(now)]

    def suspected(self, runner: str, now: float) -> list[Command]:
        """Nothing is heard of a runner: no new calls there, until something is.

        Its idle slots count as none, so that who waits gets another runner if there
        may be one more.
        """
        found = self.roster.runners.get(runner)
        if found is None or found.draining or found.suspect:
            return []
        self.roster.suspect(found)
        return self._grown(now)

    def heard(self, runner: str, now: float) -> list[Command]:
        """A runner that was suspected speaks again: it takes calls as before."""
        found = self.roster.suspects.get(runner)
        if found is None:
            return []
        self.roster.clear_suspect(found)
        commands: list[Command] = []
        for slot in list(found.idle):
            if self._queue:
                self.roster.unsettle(found, slot)
                commands += self._freed(found, slot, now)
        self._weigh(now)
        return commands

    def lost(self, runner: str, error: FlameError, now: float) -> list[Command]:
        """A ready runner is gone; its calls learn it from their links."""
        found = self.roster.runners.get(runner)
        if found is None:
            return []
        self.roster.remove(found)
        if not found.served and not found.draining:
            # It never could run a call: to the callers that is a boot that failed.
            return self._failed(found, BootError(runner, "start", str(error)), now)
        return self._grown(now)

    def boot_failed(self, runner: str, error: BootError, now: float) -> list[Command]:
        """A boot failed; try again later, or tell the callers."""
        found = self.roster.runners.get(runner)
        if found is None:
            return []
        self.roster.remove(found)
        return self._failed(found, error, now)

    # ------------------------------------------------------------------ size

    def start(self, now: float) -> list[Command]:
        """The pool comes into use: bring it to its smallest size."""
        self.growth.asleep = False
        return self._grown(now)

    def warm(self, runners: int, now: float) -> list[Command]:
        """Somebody waits until so many runners are ready."""
        self.growth.warming = min(runners, self.growth.max)
        return self.start(now)

    def cool(self, now: float) -> None:
        """Nobody waits for that any more."""
        self.growth.warming = 0
        self._weigh(now)

    def resize(self, smallest: int, largest: int, now: float) -> list[Command]:
        """The pool gets another size: boot what is missing, retire what is too much."""
        self.growth.min, self.growth.max = smallest, largest
        self.growth.asleep = False
        surplus = self.roster.alive - largest
        commands: list[Command] = []
        if surplus > 0:
            # The least is lost with those that run nothing.
            living = sorted(self.roster.living(), key=lambda found: len(found.running))
            for found in living[:surplus]:
                commands += self._retired(found, "resized")
        return commands + self._grown(now)

    # ------------------------------------------------------------------ time, end

    def tick(self, now: float) -> list[Command]:
        """Time passed: expire calls and runners, boot again after a pause."""
        commands: list[Command] = [
            Fail(call, CallTimeout("queue", limit))
            for call, limit in self._waiting.expired(now)
        ]
        for found in old_runners(self.roster, now):
            commands += self._retired(found, "lifetime")
        for found in self.growth.unneeded(len(self._queue), now):
            self.roster.remove(found)
            commands.append(End(found.name, "unneeded"))
        commands += self._rested(now)
        return commands + self._grown(now)

    def next_tick(self) -> float | None:
        """The moment at which `tick` has something to do; None for never."""
        kept, called = self.growth.most_kept, bool(self._queue)
        moments = [
            self._waiting.next_deadline(),
            next_end(self.roster, self.sizing, kept, called=called),
        ]
        if not self.closed:
            moments.append(self.growth.next_moment(len(self._queue)))
        return min((found for found in moments if found is not None), default=None)

    def close(self) -> list[Command]:
        """Take no more calls; fail those that wait, end all runners."""
        self.closed = True
        commands: list[Command] = [
            Fail(call, PoolClosed("the pool was shut down"))
            for call in self._waiting.clear()
        ]
        return commands + [End(name, "closed") for name in self.roster.clear()]

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._waiting)

    @property
    def serving(self) -> int:
        """How many runners have opened a slot and are there to stay."""
        return len(self.roster.serving)

    # ------------------------------------------------------------------ inside: slots

    def _freed(self, found: Runner, slot: int, now: float) -> list[Command]:
        """Give an open slot to the caller who waits longest, or keep it idle."""
        if self._queue and not found.suspect:
            call = self._waiting.pop()
            self.roster.seize(found, slot, call)
            return [Assign(call, found.name, slot)]
        self.roster.settle(found, slot, now)
        return []

    def _worn(self, found: Runner, slot: int) -> bool:
        """Count a slot's call; tell whether it has run as many as it may."""
        most = self.sizing.max_tasks
        found.tasks[slot] = tasks = found.tasks.get(slot, 0) + 1
        return most is not None and tasks >= most

    def _slot_failed(
        self, found: Runner, slot: int, now: float, detail: str
    ) -> list[Command]:
        found.failures += 1
        if found.failures < SLOT_FAILURES:
            return [OpenSlot(found.name, slot)]
        reason = f"{SLOT_FAILURES} of its processes in a row did not connect"
        why = detail or "its output says why"
        error = BootError(found.name, "connect", f"{reason}; {why}")
        # Calls in its other slots may finish.
        return [*self._retired(found, "failed"), *self._failed(found, error, now)]

    # ------------------------------------------------------------------ inside: shrink

    def _ended(self, found: Runner, reason: str, now: float) -> list[Command]:
        self.roster.remove(found)
        return [End(found.name, reason), *self._grown(now)]

    def _drained(self, found: Runner, now: float) -> list[Command]:
        """End a draining runner with its last call."""
        if found.running:
            return []
        return self._ended(found, found.reason, now)

    def _retired(self, found: Runner, reason: str) -> list[Command]:
        """End a runner as soon as it runs nothing."""
        self.roster.retire(found, reason)
        if found.running:
            return []
        self.roster.remove(found)
        return [End(found.name, reason)]

    def _rested(self, now: float) -> list[Command]:
        """End surplus runners that have rested long enough, or all of them."""
        if self._queue:
            return []
        if all_rested(self.roster, self.sizing, now):
            self.growth.asleep = True
            return [End(name, "idle") for name in self.roster.clear()]
        kept = self.growth.most_kept
        found = surplus_runners(self.roster, self.sizing, kept, now)
        return [End(runner.name, "idle") for runner in found]

    def _weigh(self, now: float) -> None:
        """Note whether boots are under way that nobody needs."""
        self.growth.weigh(len(self._queue), now)

    # ------------------------------------------------------------------ inside: grow

    def _refusal(self, now: float, *, again: bool) -> FlameError | None:
        """Say why a call may not wait; None when it may."""
        breaker, most = self.growth.breaker, self.sizing.max_queue
        if breaker.open and now < breaker.retry_at and not self.roster.serving:
            return breaker.last
        if most is not None and len(self._queue) >= most and not again:
            return PoolSaturated(f"{most} calls wait already (max_queue)")
        return None

    def _failed(self, found: Runner, error: BootError, now: float) -> list[Command]:
        """A runner could not be had."""
        breaker = self.growth.breaker
        breaker.failed(error, found.born, now)
        if not breaker.open or self.roster.serving:
            self._weigh(now)
            return []
        told: list[Command] = [Fail(call, error) for call in self._waiting.clear()]
        self._weigh(now)
        return told

    def _grown(self, now: float) -> list[Command]:
        return [] if self.closed else self.growth.boots(len(self._queue), now)
