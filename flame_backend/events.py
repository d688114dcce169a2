"""What a pool tells `on_event`: frozen facts, in the order in which they came about.

Called in one thread of the pool's own, under no lock, never in a caller's thread; what
the callback raises is logged. Every boot that began has a `GrowEnd`, every runner that
was had ends in a `Shrink` or a `RunnerEnded`, every call in a `CallDone`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flame_backend.errors import BootError, RunnerLost


@dataclass(frozen=True, slots=True, kw_only=True)
class CallInfo:
    """How one call went.

    Attributes:
        id: Number of the call within its pool.
        runner: Name of the runner that ran it, "" when none did.
        node: Node or host of that runner.
        attempt: Tries it took, from 1; without a `Retry` only calls that never
            started are tried again.
        queued_s: Seconds it waited for a slot.
        boot_s: Seconds the boot of its runner took.
        run_s: Seconds from the request to the result.
        log_tail: Last output of the call, as far as it had arrived: up to 4096
            characters, control characters escaped, kept for the last 1024 calls.
    """

    id: int
    runner: str = ""
    node: str = ""
    attempt: int = 1
    queued_s: float = 0.0
    boot_s: float = 0.0
    run_s: float = 0.0
    log_tail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a pool.

    Attributes:
        pool: The pool's name.
    """

    pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowStart(Event):
    """A runner is being booted.

    Attributes:
        runner: Its name.
    """

    runner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BootPhase(Event):
    """A boot moved on.

    Attributes:
        runner: The runner's name.
        phase: schedule, pull, start, ...
        detail: The cluster's own words.
    """

    runner: str
    phase: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowEnd(Event):
    """A boot is over.

    Attributes:
        runner: The runner's name.
        node: Where it is.
        seconds: What the boot took, 0 when it failed.
        error: Why it failed, or was given up; None when it did not.
        given_up: Why the pool ended it before it was ready ("unneeded", "closed", ...:
            the reasons of `Shrink`), which is no failure; "" when it did not.
    """

    runner: str
    node: str = ""
    seconds: float = 0.0
    error: BootError | None = None
    given_up: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink(Event):
    """The pool ended a runner.

    Attributes:
        runner: Its name.
        reason: "idle", "unneeded" (nobody waited for it any more), "used"
            (single_use), "lifetime", "resized", "drained" (it was told to end),
            "failed" (of no use) or "closed" (the pool's end).
    """

    runner: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerEnded(Event):
    """A runner is gone, and the pool did not end it.

    Attributes:
        runner: Its name.
        error: The cause.
    """

    runner: str
    error: RunnerLost


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDone(Event):
    """A call is over.

    Attributes:
        call: How it went.
        error: What its caller got instead of a result.
    """

    call: CallInfo
    error: BaseException | None = None
