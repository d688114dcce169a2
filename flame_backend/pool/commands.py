"""What the pool machine commands, and the sizes it is built with.

Commands are named tuples: a frozen dataclass costs four times as much to make, and one
is made for each call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from flame_backend.errors import FlameError


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


class Renew(NamedTuple):
    """Let a slot's process end by itself; another one follows."""

    runner: str
    slot: int


class End(NamedTuple):
    """End a runner.

    Attributes:
        runner: Its name.
        reason: "idle", "unneeded", "used", "lifetime", "resized", "drained", "failed"
            or "closed".
    """

    runner: str
    reason: str


class Fail(NamedTuple):
    """Tell a waiting call that it will not run."""

    call: int
    error: FlameError


Command = Assign | Boot | OpenSlot | Renew | End | Fail


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """How large a pool is, and when it grows and shrinks.

    Attributes:
        max: Most runners at a time.
        min: Runners kept while the pool is in use.
        slots: Slots of each runner.
        buffer: Idle slots kept ready beyond the calls that run, while some do.
        idle_after: Seconds without a call after which a surplus runner ends; also
            seconds after which a boot ends that nobody needs any more.
        min_idle_after: Seconds without any call after which all runners end.
        single_use: A runner ends with its first call.
        max_queue: Most calls that wait.
        placement: Which runner gets a call: the one with the fewest, or with the most.
        max_lifetime: Seconds of service after which a runner takes no more calls, at
            the latest; up to a tenth less, another share for each runner.
        max_tasks: Calls after which a slot's process is renewed.
    """

    max: int
    min: int = 0
    slots: int = 1
    buffer: int = 0
    idle_after: float | None = 30.0
    min_idle_after: float | None = None
    single_use: bool = False
    max_queue: int | None = None
    placement: Literal["least_loaded", "pack"] = "least_loaded"
    max_lifetime: float | None = None
    max_tasks: int | None = None
