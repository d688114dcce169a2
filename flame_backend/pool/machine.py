"""The pool machine: who waits, which runners exist, what to do next.

Deterministic: no clock, no I/O, no thread. Every method is an event; it changes the
machine's own state in place and returns the commands that follow, for the executor to
carry out. Checkout and checkin are O(1).

    a call         waiting -> running -> gone
    a runner       booting -> ready -> gone
    a slot         opening -> idle <-> busy -> opening (again) -> ...

Laws, held by the state machine test: never more than `max_runners` runners; a call is
assigned once, to one idle slot; a slot has one call at most; a call that waits and can
no longer be served is failed; after `close` nothing waits and no runner is left.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flame_backend.errors import (
    AppImportError,
    AuthRefused,
    BootDenied,
    CallTimeout,
    ContainerConfigError,
    ImagePullError,
    PoolClosed,
    VersionSkew,
)

if TYPE_CHECKING:
    from flame_backend.errors import BootError, FlameError

BOOT_FAILURES: Final = 3
"""Failed boots in a row after which waiting callers are told, not kept."""

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


@dataclass(frozen=True, slots=True)
class Assign:
    """Run this call on that idle slot."""

    call: int
    runner: str
    slot: int


@dataclass(frozen=True, slots=True)
class Boot:
    """Boot a runner."""

    runner: str


@dataclass(frozen=True, slots=True)
class OpenSlot:
    """Start a process for a slot."""

    runner: str
    slot: int


@dataclass(frozen=True, slots=True)
class End:
    """End a runner."""

    runner: str


@dataclass(frozen=True, slots=True)
class Fail:
    """Tell a waiting call that it will not run."""

    call: int
    error: FlameError


Command = Assign | Boot | OpenSlot | End | Fail


class _Runner:
    """One runner: which of its slots are idle or busy, by number."""

    __slots__ = ("idle", "ready", "running")

    def __init__(self) -> None:
        self.ready = False
        self.idle: set[int] = set()
        self.running: dict[int, int] = {}


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
        self._idle: deque[tuple[str, int]] = deque()
        self._waiting: OrderedDict[int, tuple[float | None, float]] = OrderedDict()
        self._failures = 0
        self._retry_at = 0.0
        self._broken: BootError | None = None
        self.closed = False

    # ------------------------------------------------------------------ calls

    def submit(
        self, call: int, now: float, queue_timeout: float | None = None
    ) -> list[Command]:
        """A call wants a slot."""
        if self.closed:
            return [Fail(call, PoolClosed("the pool was shut down"))]
        slot = self._take_idle()
        if slot is not None:
            return [self._assigned(call, slot)]
        if self._broken is not None and not self._runners:
            if now < self._retry_at:
                return [Fail(call, self._broken)]
            self._broken = None
        deadline = None if queue_timeout is None else now + queue_timeout
        self._waiting[call] = (deadline, queue_timeout or 0.0)
        return self._grown(now)

    def finished(self, runner: str, slot: int) -> list[Command]:
        """A call ended and its slot is free again."""
        found = self._runners.get(runner)
        if found is None or found.running.pop(slot, None) is None:
            return []
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
        self._failures, self._broken = 0, None
        return []

    def slot_opened(self, runner: str, slot: int) -> list[Command]:
        """A slot can take calls."""
        found = self._runners.get(runner)
        if found is None or slot in found.idle or slot in found.running:
            return []
        return self._freed(runner, slot, found)

    def slot_ended(self, runner: str, slot: int) -> list[Command]:
        """A slot's process ended; a ready runner gets another one."""
        found = self._runners.get(runner)
        if found is None:
            return []
        found.running.pop(slot, None)
        if slot in found.idle:
            found.idle.discard(slot)
            self._idle.remove((runner, slot))
        return [OpenSlot(runner, slot)]

    def lost(self, runner: str, now: float) -> list[Command]:
        """A ready runner is gone; its calls learn it from their links."""
        self._forget(runner)
        return self._grown(now)

    def boot_failed(self, runner: str, error: BootError, now: float) -> list[Command]:
        """A boot failed; try again later, or tell the callers."""
        if runner not in self._runners:
            return []
        self._forget(runner)
        self._failures += 1
        pause = min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2.0 ** (self._failures - 1))
        self._retry_at = now + pause
        hopeless = isinstance(error, FATAL) or self._failures >= BOOT_FAILURES
        if hopeless and not any(found.ready for found in self._runners.values()):
            waiting = list(self._waiting)
            self._waiting.clear()
            # Callers that come before the pause is over are told at once.
            self._broken = error
            return [Fail(call, error) for call in waiting]
        return []

    # ------------------------------------------------------------------ time, end

    def tick(self, now: float) -> list[Command]:
        """Time passed: expire waiting calls, boot again after a pause."""
        expired = [
            (call, limit)
            for call, (deadline, limit) in self._waiting.items()
            if deadline is not None and deadline <= now
        ]
        for call, _ in expired:
            del self._waiting[call]
        commands: list[Command] = [
            Fail(call, CallTimeout("queue", limit)) for call, limit in expired
        ]
        return commands + self._grown(now)

    def next_tick(self) -> float | None:
        """The moment at which `tick` has something to do; None for never."""
        moments = [found[0] for found in self._waiting.values() if found[0] is not None]
        if self._wanted() and self._retry_at:
            moments.append(self._retry_at)
        return min(moments, default=None)

    def close(self) -> list[Command]:
        """Take no more calls; fail those that wait, end all runners."""
        self.closed = True
        failed = [
            Fail(call, PoolClosed("the pool was shut down")) for call in self._waiting
        ]
        ended = [End(runner) for runner in self._runners]
        self._waiting.clear()
        self._runners.clear()
        self._idle.clear()
        return [*failed, *ended]

    # ------------------------------------------------------------------ facts

    def counts(self) -> dict[str, int]:
        """Numbers for status()."""
        ready = sum(found.ready for found in self._runners.values())
        return {
            "booting": len(self._runners) - ready,
            "ready": ready,
            "idle_slots": len(self._idle),
            "busy_slots": sum(len(found.running) for found in self._runners.values()),
            "waiting": len(self._waiting),
        }

    @property
    def runners(self) -> tuple[str, ...]:
        """Names of all runners, booting ones too."""
        return tuple(self._runners)

    # ------------------------------------------------------------------ inside

    def _take_idle(self) -> tuple[str, int] | None:
        return self._idle.popleft() if self._idle else None

    def _assigned(self, call: int, slot: tuple[str, int]) -> Assign:
        runner, number = slot
        found = self._runners[runner]
        found.idle.discard(number)
        found.running[number] = call
        return Assign(call, runner, number)

    def _freed(self, runner: str, slot: int, found: _Runner) -> list[Command]:
        """Give a slot to the caller who waits longest, or keep it idle."""
        if self._waiting:
            call, _ = self._waiting.popitem(last=False)
            return [self._assigned(call, (runner, slot))]
        found.idle.add(slot)
        self._idle.append((runner, slot))
        return []

    def _wanted(self) -> int:
        """How many runners more the waiting calls could use."""
        opening = sum(
            self._slots - len(found.idle) - len(found.running)
            for found in self._runners.values()
        )
        missing = len(self._waiting) - opening
        return max(0, min(-(-missing // self._slots), self._max - len(self._runners)))

    def _grown(self, now: float) -> list[Command]:
        if self.closed or now < self._retry_at:
            return []
        commands: list[Command] = []
        for _ in range(self._wanted()):
            runner = f"{self._name}-{self._suffix()}"
            self._runners[runner] = _Runner()
            commands.append(Boot(runner))
        return commands

    def _forget(self, runner: str) -> None:
        found = self._runners.pop(runner, None)
        for slot in found.idle if found else ():
            self._idle.remove((runner, slot))


if TYPE_CHECKING:
    from collections.abc import Callable

    Suffix = Callable[[], str]
