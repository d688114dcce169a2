"""Slots for callers: taken, given back, and what happens when they break.

At most once: a call that was not sent in full goes to another slot silently; one that
was sent ends in its result, or in the error that says why it has none.
"""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING, Final

from flame_backend.errors import (
    BootTimeout,
    CallCancelled,
    ConfigurationError,
    FlameError,
    MalformedFrame,
    PoolClosed,
    RunnerLost,
)
from flame_backend.pool.options import RUNNERS

if TYPE_CHECKING:
    from flame_backend.errors import LinkError
    from flame_backend.pool.calls import Call, Lease
    from flame_backend.pool.commands import Command
    from flame_backend.pool.ledger import Ledger
    from flame_backend.pool.reports import Reports

CAUSE_SECONDS: Final = 5.0
"""How long a caller whose link broke waits for the backend to say why."""

_monotonic: Final = time.monotonic


class Leases:
    """The callers' side of a ledger.

    Args:
        ledger: The pool's books.
        reports: What the backend reports to.
    """

    def __init__(self, ledger: Ledger, reports: Reports) -> None:
        self._ledger = ledger
        self._reports = reports

    # ------------------------------------------------------------------ in and out

    def checkout(self, call: Call, *, again: bool = False, pause: float = 0.0) -> Lease:
        """Get a slot for a call, waiting for one in this thread if need be.

        Args:
            call: The call.
            again: It was here before, and goes first.
            pause: Seconds to wait before that.

        Raises:
            PoolClosed, PoolSaturated, CallTimeout, BootError: There will be none.
        """
        ledger = self._ledger
        with ledger.lock:
            if ledger.opened and not (again or ledger.refusing):
                # The way of nearly every call.
                call.queued_at = now = _monotonic()
                lease = ledger.seat(call, now)
                if lease is not None:
                    return lease
            deferred = self._enter(call, again=again, pause=pause)
            waits = call.lease is None and call.error is None
            if waits:
                call.lock = threading.Lock()
                call.lock.acquire()
        if deferred:
            ledger.carry_out(deferred)
        if waits:
            assert call.lock is not None  # taken above, let go with lease or error
            call.lock.acquire()
            call.lock = None
        if call.error is not None:
            raise call.error
        assert call.lease is not None  # there is one or the other
        return call.lease

    def enqueue(self, call: Call, *, again: bool = False, pause: float = 0.0) -> None:
        """Have a call dispatched when it gets a slot; arguments as for `checkout`.

        Raises:
            PoolClosed: The pool takes no more calls.
        """
        with self._ledger.lock:
            deferred = self._enter(call, again=again, pause=pause)
        self._ledger.carry_out(deferred)

    def _enter(self, call: Call, *, again: bool, pause: float) -> list[Command]:
        ledger = self._ledger
        now = time.monotonic()
        if not again:
            if ledger.refusing or not ledger.opened:
                self._open()
            call.queued_at = now
        elif pause > 0 and not ledger.ended:
            ledger.delay(call, now + pause)
            return []
        return ledger.enter(call, now, again=again)

    def _open(self) -> None:
        ledger = self._ledger
        if ledger.refusing:
            msg = f"pool {ledger.spec.name} was shut down"
            raise PoolClosed(msg)
        if not ledger.opened:
            ledger.backend.open(ledger.spec, self._reports)
            ledger.opened = True

    def checkin(self, call: Call) -> None:
        """Give a slot back after a reply."""
        ledger = self._ledger
        with ledger.lock:
            now = _monotonic()
            lease = ledger.release(call, now)
            if lease is None:
                return
            if lease.end is not None:
                # It ended while the call held it, so nobody else closes it.
                lease.link.close()
            # One that is being killed: the next process of its slot comes back
            # instead of it.
            if call.doom is not None:
                return
            deferred: list[Command] = []
            if lease.end is not None or not ledger.keep(lease, now):
                commands = ledger.machine.finished(lease.runner, lease.slot, now)
                if commands:
                    deferred = ledger.settle(commands, now)
            if now + ledger.rest_seconds < ledger.keeper.wake_at:
                ledger.keeper.by(now + ledger.rest_seconds)
        if deferred:
            ledger.carry_out(deferred)

    # ------------------------------------------------------------------ given up

    def give_up(self, call: Call) -> None:
        """A caller leaves in the middle (Ctrl-C): what it has or waits for ends."""
        ledger = self._ledger
        with ledger.lock:
            now = time.monotonic()
            ledger.leave_queue(call, now)
            ledger.break_link(call, now)
            ledger.release(call, now)

    def withdraw(self, call: Call) -> bool:
        """A submitted call is cancelled if it waits; False when it does not."""
        with self._ledger.lock:
            now = time.monotonic()
            if not self._ledger.leave_queue(call, now):
                return False
            call.doom = CallCancelled("its caller cancelled it")
            self._ledger.release(call, now)
            return True

    def abandon(self, call: Call) -> bool:
        """A submitted call is cancelled while it runs; False when it does not."""
        ledger = self._ledger
        with ledger.lock:
            if call.lease is None or call.doom is not None:
                return False
            why = CallCancelled("its caller cancelled it")
            ledger.doom(call, why, time.monotonic())
            return True

    # ------------------------------------------------------------------ broken

    def unsent(self, call: Call) -> FlameError | None:
        """A call was not sent in full: None when it may be tried on another slot."""
        ledger = self._ledger
        with ledger.lock:
            now = time.monotonic()
            ledger.break_link(call, now)
            if call.doom is None and not ledger.ended:
                call.attempt += 1
                return None
            ledger.release(call, now)
        return call.doom or PoolClosed("the pool was shut down")

    def broken(self, call: Call, error: LinkError) -> FlameError:
        """Say why the link of a call ended, as far as the backend comes to know it.

        The slot's process is ended, whatever it does.
        """
        ledger = self._ledger
        with ledger.lock:
            lease = ledger.break_link(call, time.monotonic())
            try:
                return self._cause(call, lease, error)
            finally:
                # Not before: the end of the pool waits for calls, and would be told
                # as the cause.
                ledger.release(call, time.monotonic())

    def _cause(self, call: Call, lease: Lease | None, error: LinkError) -> FlameError:
        """Wait for the backend to say why a lease ended; holds the lock."""
        ledger = self._ledger
        if call.doom is not None:
            return call.doom
        if lease is None or ledger.ended:
            return CallCancelled("the pool was shut down while the call ran")
        if isinstance(error, MalformedFrame):
            detail = f"it sent what makes no sense: {error}"
            return self._lost(call, RunnerLost(lease.runner, "Unknown", detail))
        # The end of the pool is told as a cause, too.
        ledger.changed.wait_for(lambda: lease.end, CAUSE_SECONDS)
        end = lease.end
        if isinstance(end, RunnerLost):
            return self._lost(call, end)
        return end or self._lost(call, RunnerLost(lease.runner, "Unknown", str(error)))

    def _lost(self, call: Call, end: RunnerLost) -> RunnerLost:
        """Return a runner's loss as one of its calls is told of it."""
        tail = self._ledger.backend.log_tail(call.runner, call.id)
        return end.seen_by_call(started=True, log_tail=tail)

    # ------------------------------------------------------------------ size

    def start(self) -> None:
        """Open the backend, and bring the pool to its smallest size.

        Raises:
            PoolClosed: It was shut down.
            ConfigurationError: The backend cannot serve here.
        """
        ledger = self._ledger
        with ledger.lock:
            self._open()
            now = time.monotonic()
            deferred = ledger.settle(ledger.machine.start(now), now)
        ledger.carry_out(deferred)

    def resize(self, smallest: int | None, largest: int | None) -> int:
        """Give the pool another size, and return the largest; None keeps a bound."""
        ledger = self._ledger
        with ledger.lock:
            machine = ledger.machine
            low = machine.growth.min if smallest is None else smallest
            high = machine.growth.max if largest is None else largest
            whole = type(low) is int and type(high) is int
            if not whole or not 0 <= low <= high or not 1 <= high <= RUNNERS:
                bounds = f"0 <= min <= max and 1 <= max <= {RUNNERS}"
                rule = f"{bounds}, not {low!r} and {high!r}"
                raise ConfigurationError("resize", rule)
            now = time.monotonic()
            if not ledger.opened and low and not ledger.refusing:
                self._open()
            if ledger.opened and not ledger.ended:
                deferred = ledger.settle(machine.resize(low, high, now), now)
                ledger.mind_time()
            else:
                machine.growth.min, machine.growth.max, deferred = low, high, []
        ledger.carry_out(deferred)
        return high

    def wait_ready(self, seconds: float | None) -> None:
        """Wait until the smallest number of runners, and at least one, is ready.

        Raises:
            BootError: They cannot be had; the last boot's error.
            BootTimeout: They are not ready in this time.
            PoolClosed: The pool was shut down.
        """
        ledger = self._ledger
        with ledger.lock:
            self._open()
            machine = ledger.machine
            now = time.monotonic()
            wanted = max(machine.growth.min, 1)
            deferred = ledger.settle(machine.warm(wanted, now), now)
            ledger.mind_time()
        ledger.carry_out(deferred)

        def refused() -> bool:
            breaker = machine.growth.breaker
            return breaker.open and time.monotonic() < breaker.retry_at

        with ledger.lock:
            ledger.changed.wait_for(
                lambda: ledger.ended or machine.serving >= wanted or refused(), seconds
            )
            machine.cool(time.monotonic())
            ledger.mind_time()
            serving, last = machine.serving, machine.growth.breaker.last
            if ledger.ended:
                raise PoolClosed("the pool was shut down")
            if serving >= wanted:
                return
            if last is not None and refused():
                raise copy.copy(last)
        reason = f"{serving} of {wanted} runners are ready after {seconds or 0:g} s"
        raise BootTimeout(ledger.spec.name, "start", reason) from last

    # ------------------------------------------------------------------ end

    def refuse(self) -> list[Call]:
        """Take no more calls; return those that have not started."""
        with self._ledger.lock:
            self._ledger.refusing = True
            return [call for call in self._ledger.calls.values() if call.lease is None]

    def wait_idle(self, seconds: float | None) -> bool:
        """Wait until no call waits or runs; False when time ran out."""
        ledger = self._ledger
        with ledger.lock:
            return ledger.changed.wait_for(lambda: not ledger.calls, seconds)

    def end(self) -> None:
        """End everything: waiting and running calls, runners, threads. Blocks."""
        ledger = self._ledger
        with ledger.lock:
            if ledger.ended:
                return
            ledger.refusing = ledger.ended = True
            why = CallCancelled("the pool was shut down while the call ran")
            for lease in ledger.leases.values():
                ledger.tell_end(lease, why)
            ledger.leases.clear()
            now = time.monotonic()
            ledger.fail_delayed(now)
            ledger.settle(ledger.machine.close(), now)
            ledger.changed.notify_all()
            ledger.keeper.stop()
            opened = ledger.opened
        if opened:
            ledger.backend.close(0.0)
        ledger.keeper.join()

    def after_fork(self) -> None:
        """In a forked child: let go of copies; the lock may be held by nobody here."""
        for lease in self._ledger.leases.values():
            lease.link.close()
        self._ledger.backend.after_fork()
