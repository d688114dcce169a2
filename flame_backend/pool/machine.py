"""The pool machine: who waits, which runners exist, what to do next.

Deterministic: no clock, no I/O, no thread. Every method is an event; it changes the
machine's own state in place and returns the commands that follow, for the executor to
carry out. Checkout and checkin are O(1) in runners and in waiting calls.

    a call         waiting -> running -> gone
    a runner       booting -> ready -> (draining) -> gone
    a slot         opening -> idle <-> busy -> opening (again) -> ...

Laws, held by the state machine test: never more than `max_runners` runners; a call is
assigned once, to one idle slot; a slot has one call at most; a call that waits and can
no longer be served is failed; after `close` nothing waits and no runner is left.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from flame_backend.errors import (
    AppImportError,
    AuthRefused,
    BootDenied,
    BootError,
    CallTimeout,
    ContainerConfigError,
    ImagePullError,
    PoolClosed,
    VersionSkew,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.errors import FlameError

    Suffix = Callable[[], str]

BOOT_FAILURES: Final = 3
"""Failed boots in a row after which waiting callers are told, not kept."""

SLOT_FAILURES: Final = 3
"""Slots of a runner that end in a row before they connect: the runner is of no use."""

BACKOFF_SECONDS: Final = 1.0
BACKOFF_MAX_SECONDS: Final = 60.0

# What the next boot would meet again: callers are told at once.
FATAL: Final = (
    AppImportError,
    AuthRefused,
    BootDenied,
    ContainerConfigError,
    ImagePullError,
    VersionSkew,
)


# Commands are named tuples: a frozen dataclass costs four times as much to make, and
# one is made for each call.


class Assign(NamedTuple):
    """Run this call on that idle slot."""

    call: int
    runner: str
    slot: int


class Boot(NamedTuple):
    """Boot a runner."""

    runner: str


class OpenSlot(NamedTuple):
    """Start a process for a slot."""

    runner: str
    slot: int


class End(NamedTuple):
    """End a runner."""

    runner: str


class Fail(NamedTuple):
    """Tell a waiting call that it will not run."""

    call: int
    error: FlameError


Command = Assign | Boot | OpenSlot | End | Fail


class _Runner:
    """One runner: which of its slots are idle or busy, by number."""

    __slots__ = ("draining", "failures", "idle", "load", "ready", "running", "served")

    def __init__(self) -> None:
        self.ready = False
        self.draining = False
        self.served = False
        self.failures = 0
        self.idle: dict[int, None] = {}
        self.running: dict[int, int] = {}
        # Where it stands in the machine's lists of runners with idle slots; -1: none.
        self.load = -1


class Machine:
    """State of one pool.

    Args:
        name: The pool's name; runners are named after it.
        max_runners: Most runners at a time.
        slots: Slots of each runner.
        suffix: Gives a fresh suffix for each runner's name.
    """

    def __init__(self, name: str, max_runners: int, slots: int, suffix: Suffix) -> None:
        self._name = name
        self._max = max_runners
        self._slots = slots
        self._suffix = suffix
        self._runners: dict[str, _Runner] = {}
        # Runners that have an idle slot, by the number of calls they run.
        self._free: list[dict[str, _Runner]] = [{} for _ in range(slots)]
        self._waiting: OrderedDict[int, float] = OrderedDict()
        self._deadlines: list[tuple[float, int]] = []
        self._opening = 0
        self._failures = 0
        self._retry_at = 0.0
        self.closed = False

    # ------------------------------------------------------------------ calls

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
        for free in self._free:
            if free:
                runner, found = next(reversed(free.items()))
                slot, _ = found.idle.popitem()
                return [self._assigned(call, runner, slot, found)]
        self._waiting[call] = queue_timeout
        if again:
            self._waiting.move_to_end(call, last=False)
        if deadline is not None:
            self._expect(deadline, call)
        return self._grown(now)

    def finished(self, runner: str, slot: int, now: float) -> list[Command]:
        """A call ended and its slot is free again."""
        found = self._runners.get(runner)
        if found is None or found.running.pop(slot, None) is None:
            return []
        if found.draining:
            return self._drained(runner, found, now)
        return self._freed(runner, slot, found)

    def cancel(self, call: int) -> bool:
        """A waiting call is given up; False when it is not waiting."""
        return self._waiting.pop(call, None) is not None

    # ------------------------------------------------------------------ runners

    def ready(self, runner: str) -> list[Command]:
        """A runner booted; its slots follow one by one."""
        found = self._runners.get(runner)
        if found is None:
            return [End(runner)]
        found.ready = True
        return []

    def slot_opened(self, runner: str, slot: int) -> list[Command] | None:
        """A slot can take calls; None when the machine has no use for it."""
        found = self._runners.get(runner)
        if found is None or slot in found.idle or slot in found.running:
            return None
        if found.draining:
            return None
        self._failures = found.failures = 0
        self._retry_at = 0.0
        found.served = True
        self._opening -= 1
        return self._freed(runner, slot, found)

    def slot_ended(self, runner: str, slot: int, now: float) -> list[Command]:
        """A slot's process ended; its runner gets another one."""
        found = self._runners.get(runner)
        if found is None:
            return []
        if slot in found.idle or slot in found.running:
            found.idle.pop(slot, None)
            found.running.pop(slot, None)
            if found.draining:
                return self._drained(runner, found, now)
            self._opening += 1
            self._rank(runner, found)
            return [OpenSlot(runner, slot)]
        if found.draining:
            return []
        found.failures += 1
        if found.failures < SLOT_FAILURES:
            return [OpenSlot(runner, slot)]
        reason = f"{SLOT_FAILURES} of its processes in a row did not connect"
        self._forget(runner)
        error = BootError(runner, "connect", f"{reason}; its output says why")
        return [End(runner), *self._failed(error, now)]

    def draining(self, runner: str, now: float) -> list[Command]:
        """A runner will end: no new calls there; it goes when it has none left."""
        found = self._runners.get(runner)
        if found is None or found.draining:
            return []
        self._opening -= self._slots - len(found.idle) - len(found.running)
        found.draining = True
        found.idle.clear()
        self._rank(runner, found)
        return self._drained(runner, found, now)

    def lost(self, runner: str, error: FlameError, now: float) -> list[Command]:
        """A ready runner is gone; its calls learn it from their links."""
        found = self._runners.get(runner)
        if found is None:
            return []
        self._forget(runner)
        if not found.served and not found.draining:
            # It never could run a call: to the callers that is a boot that failed.
            return self._failed(BootError(runner, "start", str(error)), now)
        return self._grown(now)

    def boot_failed(self, runner: str, error: BootError, now: float) -> list[Command]:
        """A boot failed; try again later, or tell the callers."""
        if runner not in self._runners:
            return []
        self._forget(runner)
        return self._failed(error, now)

    # ------------------------------------------------------------------ time, end

    def tick(self, now: float) -> list[Command]:
        """Time passed: expire waiting calls, boot again after a pause."""
        commands: list[Command] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, call = heapq.heappop(self._deadlines)
            limit = self._waiting.pop(call, None)
            if limit is not None:
                commands.append(Fail(call, CallTimeout("queue", limit)))
        return commands + self._grown(now)

    def next_tick(self) -> float | None:
        """The moment at which `tick` has something to do; None for never."""
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        moments = [self._deadlines[0][0]] if self._deadlines else []
        if self._retry_at and self._wanted():
            moments.append(self._retry_at)
        return min(moments, default=None)

    def close(self) -> list[Command]:
        """Take no more calls; fail those that wait, end all runners."""
        self.closed = True
        commands: list[Command] = [
            Fail(call, PoolClosed("the pool was shut down")) for call in self._waiting
        ]
        commands += [End(runner) for runner in self._runners]
        self._waiting.clear()
        self._deadlines.clear()
        self._runners.clear()
        for free in self._free:
            free.clear()
        self._opening = 0
        return commands

    # ------------------------------------------------------------------ facts

    def counts(self) -> dict[str, int]:
        """Numbers for status()."""
        runners = self._runners.values()
        ready = sum(found.ready for found in runners)
        return {
            "booting": len(runners) - ready,
            "ready": ready,
            "idle_slots": sum(len(found.idle) for found in runners),
            "busy_slots": sum(len(found.running) for found in runners),
            "waiting": len(self._waiting),
        }

    @property
    def runners(self) -> tuple[str, ...]:
        """Names of all runners, booting ones too."""
        return tuple(self._runners)

    # ------------------------------------------------------------------ inside

    def _assigned(self, call: int, runner: str, slot: int, found: _Runner) -> Assign:
        """Note that a slot, idle no more, runs a call."""
        found.running[slot] = call
        self._rank(runner, found)
        return Assign(call, runner, slot)

    def _freed(self, runner: str, slot: int, found: _Runner) -> list[Command]:
        """Give a slot to the caller who waits longest, or keep it idle."""
        if self._waiting:
            call, _ = self._waiting.popitem(last=False)
            return [self._assigned(call, runner, slot, found)]
        found.idle[slot] = None
        self._rank(runner, found)
        return []

    def _rank(self, runner: str, found: _Runner) -> None:
        """Put a runner among those of its load, if a call could go there."""
        load = len(found.running) if found.idle else -1
        if load == found.load:
            return
        if found.load >= 0:
            del self._free[found.load][runner]
        if load >= 0:
            self._free[load][runner] = found
        found.load = load

    def _drained(self, runner: str, found: _Runner, now: float) -> list[Command]:
        """End a draining runner with its last call."""
        if found.running:
            return self._grown(now)
        self._forget(runner)
        return [End(runner), *self._grown(now)]

    def _failed(self, error: BootError, now: float) -> list[Command]:
        """Count a boot that failed."""
        self._failures += 1
        pause = min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2.0 ** (self._failures - 1))
        self._retry_at = now + pause
        hopeless = isinstance(error, FATAL) or self._failures >= BOOT_FAILURES
        serving = (f.served and not f.draining for f in self._runners.values())
        if not hopeless or any(serving):
            return []
        waiting = list(self._waiting)
        self._waiting.clear()
        # The next caller starts afresh: the cluster may have recovered.
        self._failures, self._retry_at = 0, 0.0
        return [Fail(call, error) for call in waiting]

    def _expect(self, deadline: float, call: int) -> None:
        """Note a deadline; those of calls that found a slot go in time or in bulk."""
        if len(self._deadlines) > 1024 + 2 * len(self._waiting):
            self._deadlines = [d for d in self._deadlines if d[1] in self._waiting]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, call))

    def _wanted(self) -> int:
        """How many runners more the waiting calls could use."""
        missing = len(self._waiting) - self._opening
        if missing <= 0:
            return 0
        return min(-(-missing // self._slots), self._max - len(self._runners))

    def _grown(self, now: float) -> list[Command]:
        if self.closed or now < self._retry_at:
            return []
        commands: list[Command] = []
        for _ in range(self._wanted()):
            runner = f"{self._name}-{self._suffix()}"
            self._runners[runner] = _Runner()
            self._opening += self._slots
            commands.append(Boot(runner))
        return commands

    def _forget(self, runner: str) -> None:
        found = self._runners.pop(runner)
        if not found.draining:
            self._opening -= self._slots - len(found.idle) - len(found.running)
        found.idle.clear()
        self._rank(runner, found)
