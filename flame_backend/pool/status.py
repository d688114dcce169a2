"""What there is in a pool, for people and for programs."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flame_backend.pool.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStatus:
    """One runner.

    Attributes:
        name: Its name.
        state: "booting", "idle", "busy", "suspect" (nothing is heard of it: no new
            calls go there) or "draining".
        node: Where it is, "" until it is ready.
        age_s: Seconds since its boot began.
        calls: Calls it runs, placements among them.
        placed: Placements it runs.
        idle_slots: Slots that could take one at once.
        reason: Why it is draining: "lifetime", "resized", "drained" (it was told to
            end), else "".
    """

    name: str
    state: str
    node: str = ""
    age_s: float = 0.0
    calls: int = 0
    placed: int = 0
    idle_slots: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """A pool at one moment; `str` is a small table.

    Attributes:
        name: The pool's name.
        min: Runners that are kept.
        max: Most runners.
        max_concurrency: Slots of each runner.
        runners: All runners, oldest first.
        waiting: Calls that wait for a slot.
        boot_failures: Failed boots in a row.
        last_boot_error: The last of them, None when boots succeed.
        closed: The pool takes no calls.
        backend: Facts about the backend, {} until it is used.
    """

    name: str
    min: int
    max: int
    max_concurrency: int
    runners: tuple[RunnerStatus, ...] = ()
    waiting: int = 0
    boot_failures: int = 0
    last_boot_error: str | None = None
    closed: bool = False
    backend: dict[str, Any] = field(default_factory=dict)

    @property
    def booting(self) -> int:
        """Runners that are not ready yet."""
        return sum(found.state == "booting" for found in self.runners)

    @property
    def ready(self) -> int:
        """Runners that take calls."""
        return sum(found.state in {"idle", "busy"} for found in self.runners)

    @property
    def running(self) -> int:
        """Calls that run."""
        return sum(found.calls for found in self.runners)

    @property
    def idle_slots(self) -> int:
        """Slots that could take a call at once."""
        return sum(found.idle_slots for found in self.runners)

    def __str__(self) -> str:
        kind = self.backend.get("kind", "not started")
        size = f"{len(self.runners)} of {self.min}..{self.max} runners"
        state = ", closed" if self.closed else ""
        counts = f"{self.running} calls run, {self.waiting} wait"
        head = f"pool {self.name} ({kind}{state}): {size}, {counts}"
        lines = [f"{head}, {self.idle_slots} slots idle"]
        if self.last_boot_error is not None:
            times = f"{self.boot_failures} failed boots in a row"
            lines.append(f"  {times}, the last: {self.last_boot_error}")
        width = max((len(found.name) for found in self.runners), default=0)
        lines += [self._line(found, width) for found in self.runners]
        return "\n".join(lines)

    def _line(self, found: RunnerStatus, width: int) -> str:
        slots = self.max_concurrency
        busy = f"{found.calls:>{len(str(slots))}} of {slots} slots busy"
        line = (
            f"  {found.name:<{width}}  {found.state:<8}  {busy}  {found.age_s:>6.0f} s"
        )
        notes = [found.node]
        if found.placed:
            notes.append(f"{found.placed} placed")
        if found.reason:
            notes.append(f"ends: {found.reason}")
        return "  ".join([line, *filter(None, notes)])


def pool_status(ledger: Ledger) -> PoolStatus:
    """Read a pool's books."""
    with ledger.lock:
        machine, now = ledger.machine, time.monotonic()
        runners = []
        placed = Counter(call.runner for call in ledger.placed if call.lease)
        for found in machine.roster.runners.values():
            info = ledger.infos.get(found.name)
            runners.append(
                RunnerStatus(
                    name=found.name,
                    state=found.state,
                    node="" if info is None else info.node,
                    age_s=now - found.born,
                    calls=len(found.running),
                    placed=placed[found.name],
                    idle_slots=len(found.idle),
                    reason=found.reason,
                )
            )
        last = machine.growth.breaker.last
        return PoolStatus(
            name=ledger.spec.name,
            min=machine.growth.min,
            max=machine.growth.max,
            max_concurrency=ledger.spec.slots,
            runners=tuple(runners),
            waiting=machine.waiting,
            boot_failures=machine.growth.breaker.failures,
            last_boot_error=None if last is None else str(last),
            closed=ledger.refusing,
            backend=ledger.backend.describe() if ledger.opened else {},
        )
