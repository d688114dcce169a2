"""Placements inside the pool: calls that hold a slot until their process ends.

What differs from a call: it is ended with SIGTERM and as much time as is granted, how
its process ended is what its owner wants to know, its slot's process is not used again,
and the end of the pool ends it instead of waiting for it.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

from flame_backend.errors import (
    CallCancelled,
    CallCrashed,
    CallError,
    FlameError,
    LinkError,
    PoolClosed,
    RunnerLost,
)
from flame_backend.pool.exchange import answered

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.pool.calls import Lease, PlacedCall
    from flame_backend.pool.exchange import Outcome
    from flame_backend.pool.ledger import Ledger

CAUSE_SECONDS: Final = 5.0
"""How long the owner of a placement whose link ended waits to hear of its process."""


class Placements:
    """The placements of a ledger.

    Args:
        ledger: The pool's books.
        settle: Tells a call's end to its future, and to whoever listens.
    """

    def __init__(
        self,
        ledger: Ledger,
        settle: Callable[[PlacedCall, None, BaseException | None], None],
    ) -> None:
        self._ledger = ledger
        self._settle = settle

    def add(self, call: PlacedCall) -> None:
        """Note a placement that begins."""
        with self._ledger.lock:
            self._ledger.placed.add(call)

    def stop(self, call: PlacedCall, grace: float = 0.0) -> None:
        """End a placement: SIGTERM, SIGKILL after a grace period."""
        if self._stopped(call, grace):
            self._settle(call, None, None)

    def _stopped(self, call: PlacedCall, grace: float) -> bool:
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

    def outlast(self, call: PlacedCall, lease: Lease) -> Outcome:
        """Wait for the end of a placement that was sent in full.

        Raises:
            FlameError: It ended without a reply.
        """
        try:
            done = answered(lease.link, call, self._ledger.spec)
        except LinkError as error:
            raise self._broken(call, error) from None
        self._left(call, raised=done[1] is not None)
        return done

    def _left(self, call: PlacedCall, *, raised: bool) -> None:
        """A target returned or raised; its process ends with its link, and is gone."""
        ledger = self._ledger
        with ledger.lock:
            call.raised = raised
            # As of a program that raised.
            call.exit_code = 1 if raised else 0
            lease = call.lease
            if lease is not None:
                lease.link.close()
                if not ledger.changed.wait_for(lambda: lease.end, CAUSE_SECONDS):
                    ledger.break_link(call, time.monotonic())
            ledger.release(call, time.monotonic())

    def _broken(self, call: PlacedCall, error: LinkError) -> FlameError:
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
            tail = ledger.backend.log_tail(call.runner, call.id)
            return end.seen_by_call(started=True, log_tail=tail)
        return end

    def forget(self, call: PlacedCall) -> None:
        """A placement has ended."""
        with self._ledger.lock:
            self._ledger.placed.discard(call)

    def end(self, deadline: float | None) -> list[PlacedCall]:
        """Stop all placements, as soon as no call runs that may need them.

        Args:
            deadline: When the pool ends; None for when all calls have.

        Returns:
            Those that there were.
        """
        ledger = self._ledger
        with ledger.lock:
            if ledger.placed:
                ledger.changed.wait_for(lambda: self._alone(ledger), left(deadline))
            living = list(ledger.placed)
        seconds, limit = left(deadline), ledger.spec.shutdown_timeout
        for call in living:
            if self._stopped(call, limit if seconds is None else min(seconds, limit)):
                call.stopped = False
                closed = PoolClosed("the pool was shut down before it began")
                self._settle(call, None, closed)
        return living

    def _alone(self, ledger: Ledger) -> bool:
        runners = ledger.machine.roster.runners.values()
        running = sum(len(found.running) for found in runners)
        return running <= sum(call.lease is not None for call in ledger.placed)


def were_killed(placed: list[PlacedCall]) -> bool:
    """Tell whether some placement did not go when it was asked to."""
    return any(call.exit_code == -signal.SIGKILL for call in placed)


def left(deadline: float | None) -> float | None:
    """Return the seconds until a moment, None for no such moment."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def stop_on(ledger: Ledger, runner: str, reason: str, now: float) -> None:
    """Have the placements on a runner that was told to end use the time it has.

    Holds the ledger's lock.
    """
    for call in ledger.placed:
        if call.lease is not None and call.runner == runner and call.doom is None:
            end = RunnerLost(runner, "Drained", f"it was told to end ({reason})")
            ledger.doom(call, end, now, ledger.spec.shutdown_timeout)
