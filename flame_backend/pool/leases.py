"""Who holds which slot: the machine, the links, and the backend behind them.

All state is under one lock; the machine decides, and what it commands is carried out
here. Callers get a lease (a slot in their hands) and give it back. Links are closed and
cut under the lock alone: a descriptor that one thread closes and another one cuts by
its number could be a stranger's by then.

At most once: a call that was not sent in full goes to another slot silently; one that
was sent ends in its result, or in the error that says why it has none.
"""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from flame_backend.errors import (
    CallCrashed,
    CallTimeout,
    FlameError,
    MalformedFrame,
    PoolClosed,
    RunnerLost,
)
from flame_backend.pool.calls import Lease
from flame_backend.pool.keeper import Keeper
from flame_backend.pool.machine import Assign, Boot, End, Fail, OpenSlot

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.backends.base import Backend, PoolSpec, RunnerInfo
    from flame_backend.errors import BootError, LinkError
    from flame_backend.pool.calls import Call
    from flame_backend.pool.machine import Command, Machine
    from flame_backend.wire.link import Link

CAUSE_SECONDS: Final = 5.0
"""How long a caller whose link broke waits for the backend to say why."""

LAST_RESORT_SECONDS: Final = 4.0
"""After a kill was asked for: the link itself is cut when nothing has ended."""


class Leases:
    """Everything a pool's callers share; also the sink of its backend.

    Args:
        machine: Decides; used under the lock alone.
        backend: Where runners come from; opened with the first call.
        spec: What the backend must know about the pool.
        dispatch: Takes up a submitted call that has got a lease, or an error; quick.
    """

    def __init__(
        self,
        machine: Machine,
        backend: Backend,
        spec: PoolSpec,
        dispatch: Callable[[Call], None],
    ) -> None:
        self._machine = machine
        self._backend = backend
        self._spec = spec
        self._dispatch = dispatch
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._keeper = Keeper(f"flame-keeper-{spec.name}", self._lock, self._tick)
        self._leases: dict[tuple[str, int], Lease] = {}
        self._infos: dict[str, RunnerInfo] = {}
        self._calls: dict[int, Call] = {}
        self._timed: dict[int, Call] = {}
        self._opened = False
        self._refusing = False
        self._ended = False

    # ------------------------------------------------------------------ calls

    def checkout(self, call: Call, *, again: bool = False) -> Lease:
        """Get a slot for a call, waiting for one in this thread if need be.

        Raises:
            PoolClosed, CallTimeout, BootError: There will be none.
        """
        with self._lock:
            deferred = self._enter(call, again=again)
            waits = call.lease is None and call.error is None
            if waits:
                call.lock = threading.Lock()
                call.lock.acquire()
        if deferred:
            self._carry_out(deferred)
        if waits:
            assert call.lock is not None  # taken above, let go with lease or error
            call.lock.acquire()
            call.lock = None
        if call.error is not None:
            raise call.error
        assert call.lease is not None  # there is one or the other
        return call.lease

    def enqueue(self, call: Call, *, again: bool = False) -> None:
        """Have a call dispatched when it gets a slot.

        Raises:
            PoolClosed: The pool takes no more calls.
        """
        with self._lock:
            deferred = self._enter(call, again=again)
        self._carry_out(deferred)

    def checkin(self, call: Call) -> None:
        """Give a slot back after a reply."""
        with self._lock:
            now = time.monotonic()
            lease = self._release(call, now)
            # One that ran out of time is being killed: the next process of its slot
            # comes back instead of it.
            if lease is None or call.timed_out:
                return
            commands = self._machine.finished(lease.runner, lease.slot, now)
            deferred = self._settle(commands, now) if commands else commands
        if deferred:
            self._carry_out(deferred)

    def give_up(self, call: Call) -> None:
        """A caller leaves in the middle (Ctrl-C): what it has or waits for ends."""
        with self._lock:
            self._machine.cancel(call.id)
            self._break(call)
            self._release(call, time.monotonic())

    def withdraw(self, call: Call) -> bool:
        """A submitted call was cancelled; False when it has been dispatched."""
        with self._lock:
            if not self._machine.cancel(call.id):
                return False
            self._release(call, time.monotonic())
            return True

    def unsent(self, call: Call) -> FlameError | None:
        """A call was not sent in full: None when it may be tried on another slot."""
        with self._lock:
            self._break(call)
            self._timed.pop(call.id, None)
            if not call.timed_out and not self._ended:
                call.attempt += 1
                return None
            self._release(call, time.monotonic())
        if call.timed_out:
            return CallTimeout("run", call.timeout or 0.0)
        return PoolClosed("the pool was shut down")

    def broken(self, call: Call, error: LinkError) -> FlameError:
        """Say why the link of a call ended, as far as the backend comes to know it.

        The slot's process is ended, whatever it does.
        """
        with self._lock:
            lease = self._break(call)
            self._release(call, time.monotonic())
            if call.timed_out:
                return CallTimeout("run", call.timeout or 0.0)
            if lease is None or self._ended:
                return _cancelled()
            if isinstance(error, MalformedFrame):
                detail = f"it sent what makes no sense: {error}"
                return RunnerLost(lease.runner, "Unknown", detail)
            # The end of the pool is told as a cause, too.
            self._changed.wait_for(lambda: lease.end, CAUSE_SECONDS)
            end = lease.end
        if isinstance(end, RunnerLost):
            return end.seen_by_call(started=True)
        return end or RunnerLost(lease.runner, "Unknown", str(error))

    # ------------------------------------------------------------------ under the lock

    def _enter(self, call: Call, *, again: bool) -> list[Command]:
        """Bring a call before the machine."""
        now = time.monotonic()
        if not again:
            self._admit(call, now)
        commands = self._machine.submit(
            call.id, now, call.queue_deadline, call.queue_timeout or 0.0, again=again
        )
        deferred = self._settle(commands, now)
        if call.lease is None:
            self._mind_time()
        return deferred

    def _admit(self, call: Call, now: float) -> None:
        if self._refusing:
            msg = f"pool {self._spec.name} was shut down"
            raise PoolClosed(msg)
        if not self._opened:
            self._backend.open(self._spec, self)
            self._opened = True
        self._calls[call.id] = call
        call.queued_at = now
        if call.queue_timeout is not None:
            call.queue_deadline = now + call.queue_timeout

    def _release(self, call: Call, now: float) -> Lease | None:
        """Forget a call, and return what it held."""
        self._calls.pop(call.id, None)
        if call.timeout is not None:
            self._timed.pop(call.id, None)
        lease, call.lease = call.lease, None
        if lease is not None:
            lease.call = None
            call.run_s = now - call.started_at
        if self._refusing and not self._calls:
            self._changed.notify_all()
        return lease

    def _break(self, call: Call) -> Lease | None:
        """Close a call's link and end its process; return its lease."""
        lease, call.lease = call.lease, None
        if lease is not None:
            call.run_s = time.monotonic() - call.started_at
            lease.call = None
            lease.link.close()
            self._kill(lease)
        return lease

    def _kill(self, lease: Lease) -> None:
        # Only while the slot is still this process: its successor runs another call.
        # The order is queued here, so before any that follows from the slot's end.
        if self._leases.get((lease.runner, lease.slot)) is lease:
            self._backend.kill_slot(lease.runner, lease.slot)

    def _settle(self, commands: list[Command], now: float) -> list[Command]:
        """Carry out what is due at once; return what has to wait for the lock's end."""
        deferred: list[Command] = []
        for command in commands:
            if type(command) is Assign:
                self._assign(command, now)
            elif type(command) is Fail:
                self._fail(command, now)
            else:
                deferred.append(command)
        return deferred

    def _assign(self, command: Assign, now: float) -> None:
        call = self._calls[command.call]
        lease = self._leases[command.runner, command.slot]
        lease.call = call
        call.lease = lease
        call.runner = lease.runner
        call.queued_s = now - call.queued_at
        call.started_at = now
        info = self._infos.get(lease.runner)
        if info is not None:
            call.node, call.boot_s = info.node, info.boot_seconds
        if call.timeout is not None:
            call.deadline = now + call.timeout
            self._timed[call.id] = call
            self._keeper.by(call.deadline)
        if call.future is not None:
            self._dispatch(call)
        elif call.lock is not None:
            call.lock.release()

    def _fail(self, command: Fail, now: float) -> None:
        call = self._calls.get(command.call)
        if call is None:
            return
        # Several callers may get it, each with a traceback of its own.
        call.error = copy.copy(command.error)
        call.queued_s = now - call.queued_at
        if call.future is not None:
            self._dispatch(call)
        else:
            self._release(call, now)
            if call.lock is not None:
                call.lock.release()

    def _mind_time(self) -> None:
        """Have the keeper look when the machine has something to do."""
        moment = self._machine.next_tick()
        if moment is not None:
            self._keeper.by(moment)

    def _tell_end(self, lease: Lease, end: FlameError) -> None:
        """Note why a slot is gone, for whoever holds it."""
        lease.end = end
        if lease.call is None:
            lease.link.close()
        else:
            lease.link.shutdown()
        self._changed.notify_all()

    # ------------------------------------------------------------------ without it

    def _carry_out(self, commands: list[Command]) -> None:
        """Tell the backend."""
        for command in commands:
            if isinstance(command, Boot):
                self._backend.boot(command.runner)
            elif isinstance(command, OpenSlot):
                self._backend.open_slot(command.runner, command.slot)
            elif isinstance(command, End):
                self._backend.end(command.runner, 0.0)

    def _tick(self) -> None:
        """Time passed; in the keeper's thread."""
        with self._lock:
            now = time.monotonic()
            for call in [c for c in self._timed.values() if c.deadline <= now]:
                self._late(call, now)
            deferred = self._settle(self._machine.tick(now), now)
            for call in self._timed.values():
                self._keeper.by(call.deadline)
            self._mind_time()
        self._carry_out(deferred)

    def _late(self, call: Call, now: float) -> None:
        """First have the process killed, then cut the link; holds the lock."""
        lease = call.lease
        if lease is None or call.timed_out:
            del self._timed[call.id]
            if lease is not None:
                lease.link.shutdown()
            return
        call.timed_out = True
        call.deadline = now + LAST_RESORT_SECONDS
        self._kill(lease)

    # ------------------------------------------------------------------ Sink

    def ready(self, info: RunnerInfo) -> None:
        """A runner is ready."""
        with self._lock:
            commands = self._machine.ready(info.runner)
            if not commands:
                self._infos[info.runner] = info
        self._carry_out(commands)

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """A slot is open."""
        with self._lock:
            lease = Lease(runner, slot, link)
            key = (runner, slot)
            if self._ended or self._leases.setdefault(key, lease) is not lease:
                link.close()
                return
            commands = self._machine.slot_opened(runner, slot)
            if commands is None:
                del self._leases[key]
                link.close()
                return
            deferred = self._settle(commands, time.monotonic())
        self._carry_out(deferred)

    def slot_ended(
        self, runner: str, slot: int, exit_code: int | None, signal: int | None
    ) -> None:
        """A slot's process ended; whoever holds its link learns why."""
        with self._lock:
            lease = self._leases.pop((runner, slot), None)
            if lease is not None:
                self._tell_end(lease, CallCrashed(runner, exit_code, signal))
            now = time.monotonic()
            commands = self._machine.slot_ended(runner, slot, now)
            deferred = self._settle(commands, now)
            self._mind_time()
        self._carry_out(deferred)

    def boot_failed(self, runner: str, error: BootError) -> None:
        """A boot failed."""
        with self._lock:
            now = time.monotonic()
            commands = self._machine.boot_failed(runner, error, now)
            deferred = self._settle(commands, now)
            self._mind_time()
        self._carry_out(deferred)

    def draining(self, runner: str, reason: str) -> None:
        """A runner was told to end."""
        del reason
        with self._lock:
            now = time.monotonic()
            deferred = self._settle(self._machine.draining(runner, now), now)
        self._carry_out(deferred)

    def lost(self, runner: str, error: RunnerLost) -> None:
        """A runner is gone; its callers learn why."""
        with self._lock:
            now = time.monotonic()
            for key in [key for key in self._leases if key[0] == runner]:
                self._tell_end(self._leases.pop(key), error)
            self._infos.pop(runner, None)
            commands = self._machine.lost(runner, error, now)
            deferred = self._settle(commands, now)
            self._mind_time()
        self._carry_out(deferred)

    def phase(self, runner: str, phase: str, detail: str) -> None:
        """A boot moved on; nobody listens in this version."""

    # ------------------------------------------------------------------ end

    def refuse(self) -> list[Call]:
        """Take no more calls; return those that wait."""
        with self._lock:
            self._refusing = True
            return [call for call in self._calls.values() if call.lease is None]

    def wait_idle(self, seconds: float | None) -> bool:
        """Wait until no call waits or runs; False when time ran out."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._calls, seconds)

    def end(self) -> None:
        """End everything: waiting and running calls, runners, threads. Blocks."""
        with self._lock:
            if self._ended:
                return
            self._refusing = self._ended = True
            self._settle(self._machine.close(), time.monotonic())
            for lease in self._leases.values():
                self._tell_end(lease, _cancelled())
            self._leases.clear()
            self._keeper.stop()
            opened = self._opened
        if opened:
            self._backend.close(0.0)
        self._keeper.join()

    def after_fork(self) -> None:
        """In a forked child: let go of copies; the lock may be held by nobody here."""
        for lease in self._leases.values():
            lease.link.close()
        self._backend.after_fork()

    def status(self) -> dict[str, Any]:
        """Return facts for people."""
        with self._lock:
            facts: dict[str, Any] = self._machine.counts()
            facts["runners"] = list(self._machine.runners)
            facts["backend"] = self._backend.describe() if self._opened else {}
        return facts


def _cancelled() -> FlameError:
    from flame_backend.errors import CallCancelled

    return CallCancelled("the pool was shut down while the call ran")
