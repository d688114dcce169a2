"""Placements inside the pool: calls that hold a slot until their process ends.

What differs from a call: it is ended with SIGTERM and as much time as is granted, how
its process ended is what its owner wants to know, its slot's process is not used again,
and the end of the pool ends it instead of waiting for it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from flame_backend.errors import (
    CallCancelled,
    CallCrashed,
    CallError,
    FlameError,
    RunnerLost,
)

if TYPE_CHECKING:
    from flame_backend.errors import LinkError
    from flame_backend.pool.calls import PlacedCall
    from flame_backend.pool.ledger import Ledger

CAUSE_SECONDS: Final = 5.0
"""How long the owner of a placement whose link ended waits to hear of its process."""


class Placements:
    """The placements of a ledger.

    Args:
        ledger: The pool's books.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def add(self, call: PlacedCall) -> None:
        """Note a placement that begins."""
        with self._ledger.lock:
            self._ledger.placed.add(call)

    def stop(self, call: PlacedCall, grace: float) -> bool:
        """Ask for a placement's end: True when it waits no more for its beginning."""
        ledger = self._ledger
        with ledger.lock:
            now = time.monotonic()
            call.stopped = True
            if ledger.leave_queue(call, now):
                ledger.release(call, now)
                return True
            if call.lease is not None:
                ledger.doom(call, CallError("it was stopped"), now, grace)
        return False

    def left(self, call: PlacedCall, *, raised: bool) -> None:
        """A target returned or raised; its process ends with its link."""
        ledger = self._ledger
        with ledger.lock:
            call.raised = raised
            # As of a program that raised.
            call.exit_code = 1 if raised else 0
            lease = ledger.release(call, time.monotonic())
            if lease is not None:
                ledger.leases.pop((lease.runner, lease.slot), None)
                lease.link.close()

    def broken(self, call: PlacedCall, error: LinkError) -> FlameError:
        """Say why the link of a placement ended, once its process has."""
        ledger = self._ledger
        with ledger.lock:
            lease = ledger.break_link(call, time.monotonic())
            end: FlameError
            if lease is None or ledger.ended:
                end = CallCancelled("the pool was shut down while it ran")
            else:
                ledger.changed.wait_for(lambda: lease.end, CAUSE_SECONDS)
                end = lease.end or RunnerLost(lease.runner, "Unknown", str(error))
            ledger.release(call, time.monotonic())
        if isinstance(end, CallCrashed):
            number = end.signal
            call.exit_code = end.exit_code if number is None else -number
        end = call.doom or end
        if isinstance(end, RunnerLost):
            tail = ledger.backend.log_tail(call.id)
            return end.seen_by_call(started=True, log_tail=tail)
        return end

    def forget(self, call: PlacedCall) -> None:
        """A placement has ended."""
        with self._ledger.lock:
            self._ledger.placed.discard(call)

    def living(self) -> list[PlacedCall]:
        """Return those that have not ended."""
        with self._ledger.lock:
            return list(self._ledger.placed)

    def outlast(self, seconds: float | None) -> None:
        """Wait until no call runs that is none of them, at the end of the pool."""
        ledger = self._ledger
        with ledger.lock:
            ledger.changed.wait_for(lambda: self._alone(ledger), seconds)

    def _alone(self, ledger: Ledger) -> bool:
        runners = ledger.machine.roster.runners.values()
        running = sum(len(found.running) for found in runners)
        return running <= sum(call.lease is not None for call in ledger.placed)


def stop_on(ledger: Ledger, runner: str, reason: str, now: float) -> None:
    """Have the placements on a runner that was told to end use the time it has.

    Holds the ledger's lock.
    """
    for call in ledger.placed:
        if call.lease is not None and call.runner == runner and call.doom is None:
            end = RunnerLost(runner, "Drained", f"it was told to end ({reason})")
            ledger.doom(call, end, now, ledger.spec.shutdown_timeout)
