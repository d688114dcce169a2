"""What a backend reports, brought before the machine and into the books.

The methods of `Sink`: callable from any thread, none blocks or raises.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from flame_backend.errors import AppImportError, BootTimeout, CallCrashed, LinkError
from flame_backend.events import BootPhase, GrowEnd, RunnerEnded
from flame_backend.pool.calls import Call, Lease
from flame_backend.pool.commands import End
from flame_backend.pool.placing import stop_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.backends.base import RunnerInfo, SlotEnd
    from flame_backend.errors import BootError, RunnerLost
    from flame_backend.events import Event
    from flame_backend.pool.commands import Command
    from flame_backend.pool.ledger import Ledger
    from flame_backend.wire.link import Link


class Reports:
    """The backend's side of a ledger.

    Args:
        ledger: The pool's books.
        initializer: The request that a slot serves before all others; None for none.
        prepare: Has a thread make it, and call `prepared`; quick.
    """

    def __init__(
        self,
        ledger: Ledger,
        initializer: list[bytes] | None,
        prepare: Callable[[Lease], None],
    ) -> None:
        self._ledger = ledger
        self._initializer = initializer
        self._prepare = prepare
        self._logger = logging.getLogger(f"flame_backend.pool.{ledger.spec.name}")

    def ready(self, info: RunnerInfo) -> None:
        """A runner is ready."""
        ledger = self._ledger
        with ledger.lock:
            commands = ledger.machine.ready(info.runner)
            if not commands:
                ledger.infos[info.runner] = info
                self._announce(
                    GrowEnd(
                        pool=ledger.spec.name,
                        runner=info.runner,
                        node=info.node,
                        seconds=info.boot_seconds,
                    )
                )
        ledger.carry_out(commands)

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """A slot is open."""
        ledger = self._ledger
        with ledger.lock:
            lease = Lease(runner, slot, link)
            key = (runner, slot)
            if ledger.ended or ledger.leases.setdefault(key, lease) is not lease:
                link.close()
                return
            if self._initializer is not None:
                # The boot is not over before that.
                call = Call(0, self._initializer, ledger.spec.boot_timeout)
                ledger.join(call, lease, time.monotonic())
                self._prepare(lease)
                return
            deferred = self._usable(lease)
        ledger.carry_out(deferred)

    def prepared(self, lease: Lease, error: BaseException | None) -> None:
        """The initializer of a slot has returned, raised, or broken its link."""
        ledger = self._ledger
        key = (lease.runner, lease.slot)
        with ledger.lock:
            call = lease.call
            assert call is not None  # the initializer
            ledger.release(call, time.monotonic())
            if call.doom is not None:
                reason = f"waited {call.timeout:g} s for the initializer"
                error = BootTimeout(lease.runner, "init", reason)
            deferred: list[Command] = []
            before = self._last_failure()
            present = ledger.leases.get(key) is lease
            if present and error is None:
                deferred = self._usable(lease)
            else:
                lease.link.close()
                if present:
                    del ledger.leases[key]
                    ledger.backend.kill_slot(*key)
                # Otherwise slot or runner ended meanwhile, which has been reported.
                if error is not None and (present or call.doom is not None):
                    deferred = self._unprepared(lease.runner, error)
            failure = self._last_failure()
        self._log(failure, before)
        ledger.carry_out(deferred)

    def _usable(self, lease: Lease) -> list[Command]:
        """Bring an open slot before the machine; holds the lock."""
        ledger, now = self._ledger, time.monotonic()
        commands = ledger.machine.slot_opened(lease.runner, lease.slot, now)
        if commands is None:
            del ledger.leases[lease.runner, lease.slot]
            lease.link.close()
            return []
        return self._settled(commands, now)

    def _unprepared(self, runner: str, error: BaseException) -> list[Command]:
        """Give up a runner whose first slot cannot be used; holds the lock.

        One that serves calls keeps doing that; its slot is tried again.
        """
        machine = self._ledger.machine
        found = machine.roster.runners.get(runner)
        if found is None or found.served or isinstance(error, LinkError):
            return []
        failure = error if isinstance(error, BootTimeout) else _told(runner, error)
        now = time.monotonic()
        commands = machine.boot_failed(runner, failure, now)
        return self._settled([End(runner, "failed"), *commands], now)

    def slot_ended(self, end: SlotEnd) -> None:
        """A slot's process ended; whoever holds its link learns why."""
        ledger = self._ledger
        with ledger.lock:
            lease = ledger.leases.pop((end.runner, end.slot), None)
            if lease is not None:
                crash = CallCrashed(end.runner, end.exit_code, end.signal, end.detail)
                ledger.tell_end(lease, crash)
            now = time.monotonic()
            machine, before = ledger.machine, self._last_failure()
            commands = machine.slot_ended(end.runner, end.slot, now, end.detail)
            deferred = self._settled(commands, now)
            failure = self._last_failure()
        self._log(failure, before)
        ledger.carry_out(deferred)

    def boot_failed(self, runner: str, error: BootError) -> None:
        """A boot failed."""
        ledger = self._ledger
        self._log(error)
        with ledger.lock:
            if runner in ledger.machine.roster.runners:
                name = ledger.spec.name
                self._announce(GrowEnd(pool=name, runner=runner, error=error))
            now = time.monotonic()
            commands = ledger.machine.boot_failed(runner, error, now)
            deferred = self._settled(commands, now)
        ledger.carry_out(deferred)

    def draining(self, runner: str, reason: str) -> None:
        """A runner was told to end."""
        ledger = self._ledger
        with ledger.lock:
            now = time.monotonic()
            stop_on(ledger, runner, reason, now)
            deferred = self._settled(ledger.machine.draining(runner, now), now)
        ledger.carry_out(deferred)

    def suspect(self, runner: str, *, silent: bool) -> None:
        """Nothing was heard of a runner for a while, or something is again."""
        ledger = self._ledger
        with ledger.lock:
            machine, now = ledger.machine, time.monotonic()
            told = machine.suspected if silent else machine.heard
            deferred = self._settled(told(runner, now), now)
        ledger.carry_out(deferred)

    def lost(self, runner: str, error: RunnerLost) -> None:
        """A runner is gone; its callers learn why."""
        ledger = self._ledger
        self._logger.warning("runner %s: %s (%s)", runner, error.reason, error.detail)
        with ledger.lock:
            now = time.monotonic()
            for key in [key for key in ledger.leases if key[0] == runner]:
                ledger.tell_end(ledger.leases.pop(key), error)
            ledger.infos.pop(runner, None)
            if runner in ledger.machine.roster.runners:
                name = ledger.spec.name
                self._announce(RunnerEnded(pool=name, runner=runner, error=error))
            deferred = self._settled(ledger.machine.lost(runner, error, now), now)
        ledger.carry_out(deferred)

    def phase(self, runner: str, phase: str, detail: str) -> None:
        """A boot moved on."""
        name = self._ledger.spec.name
        self._announce(BootPhase(pool=name, runner=runner, phase=phase, detail=detail))

    def _settled(self, commands: list[Command], now: float) -> list[Command]:
        """Settle, and see to what follows from it; holds the lock."""
        deferred = self._ledger.settle(commands, now)
        self._ledger.mind_time()
        self._ledger.changed.notify_all()
        return deferred

    def _last_failure(self) -> BootError | None:
        """Return why a runner was given up last; holds the lock."""
        return self._ledger.machine.growth.breaker.last

    def _log(self, failure: BootError | None, before: BootError | None = None) -> None:
        """Log a failed boot that is new: nobody may be waiting who would hear of it."""
        if failure is not None and failure is not before:
            self._logger.warning("%s", str(failure).partition("\n")[0])

    def _announce(self, event: Event) -> None:
        if self._ledger.announce is not None:
            self._ledger.announce(event)


def _told(runner: str, error: BaseException) -> BootError:
    """Return what callers are told of an initializer that raised."""
    reason = f"the initializer raised {type(error).__name__}: {error}"
    trace = getattr(error.__cause__, "traceback_text", "")
    return AppImportError(runner, "init", reason.partition("\n")[0], trace)
