"""The pool's books: who holds which slot, under one lock.

The machine decides, and what it commands is carried out here: what concerns calls and
links at once, under the lock, and what the backend must be told when the lock is free.
Callers come in through `leases`, the backend's reports through `reports`.

Links are closed and cut under the lock alone: a descriptor that one thread closes and
another one cuts by its number could be a stranger's by then.
"""

from __future__ import annotations

import copy
import heapq
import math
import threading
import time
from typing import TYPE_CHECKING, Final

from flame_backend.backends.base import KILL_GRACE_SECONDS
from flame_backend.errors import BootError, CallTimeout, PoolClosed, RunnerLost
from flame_backend.events import GrowEnd, GrowStart, Shrink
from flame_backend.pool.commands import Assign, Boot, End, Fail, OpenSlot, Renew
from flame_backend.pool.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.backends.base import Backend, PoolSpec, RunnerInfo
    from flame_backend.errors import FlameError
    from flame_backend.events import Event
    from flame_backend.pool.calls import Call, Lease, PlacedCall
    from flame_backend.pool.commands import Command
    from flame_backend.pool.machine import Machine

LAST_RESORT_SECONDS: Final = 2.0
"""After a kill and its grace: the link itself is cut when nothing has ended."""

END_GRACE_SECONDS: Final = 1.0
"""For an ended runner's slots, whose links are closed, to go by themselves."""


class Ledger:
    """All state of a pool; methods hold the lock unless they say otherwise.

    Args:
        machine: Decides.
        backend: Where runners come from; opened with the first use.
        spec: What the backend must know about the pool.
        dispatch: Takes up a submitted call that has got a lease, or an error; quick.
        announce: Tells an event; None when nobody listens.

    Attributes:
        lock: Guards everything here.
        changed: Notified when a slot ends, a runner comes or fails, the last call goes.
        keeper: Sleeps until the earliest deadline.
        leases: Open slots.
        infos: Runners that are ready.
        calls: Calls that wait or run.
        placed: Calls that are placements, until they have ended.
        rest_seconds: After a call: when the keeper looks whether its runner may go.
        opened: The backend is open.
        refusing: No new calls.
        ended: No calls at all.
    """

    def __init__(
        self,
        machine: Machine,
        backend: Backend,
        spec: PoolSpec,
        dispatch: Callable[[Call], None],
        announce: Callable[[Event], None] | None,
    ) -> None:
        self._machine = machine
        self._kept: Lease | None = None
        self._kept_since = 0.0
        self.backend = backend
        self.spec = spec
        self.announce = announce
        self._dispatch = dispatch
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.keeper = Keeper(f"flame-keeper-{spec.name}", self.lock, self._tick)
        self.leases: dict[tuple[str, int], Lease] = {}
        self.infos: dict[str, RunnerInfo] = {}
        self.calls: dict[int, Call] = {}
        self.placed: set[PlacedCall] = set()
        self._timed: set[Call] = set()
        self._delayed: list[tuple[float, int, Call]] = []
        idle = machine.sizing.idle_after, machine.sizing.min_idle_after
        self.rest_seconds = min((s for s in idle if s is not None), default=math.inf)
        self.opened = False
        self.refusing = False
        self.ended = False

    # ------------------------------------------------------------------ calls

    @property
    def most(self) -> int:
        """How many runners there may be; asked for with or without the lock."""
        return self._machine.growth.max

    @property
    def machine(self) -> Machine:
        """Decides; has been told everything. Asked for with the lock held."""
        lease = self._kept
        if lease is not None:
            self._kept = None
            self._machine.finished(lease.runner, lease.slot, self._kept_since)
        return self._machine

    def keep(self, lease: Lease, now: float) -> bool:
        """Keep a slot whose call ended for the next one; False when it may not be.

        To the machine it is busy, until anybody asks the machine for anything. Calls
        that follow one another cost a quarter less.
        """
        if self._kept is not None or not self._machine.would_reuse(lease.runner):
            return False
        self._kept = lease
        self._kept_since = now
        return True

    def seat(self, call: Call, now: float) -> Lease | None:
        """Give a new call the slot that was kept, if one was."""
        lease = self._kept
        if lease is not None:
            self._kept = None
            self.calls[call.id] = call
            self.join(call, lease, now)
        return lease

    def enter(self, call: Call, now: float, *, again: bool) -> list[Command]:
        """Bring a call before the machine; return what has to wait."""
        self.calls[call.id] = call
        call.error = None
        if call.queue_timeout is not None and call.queue_deadline is None:
            call.queue_deadline = now + call.queue_timeout
        commands = self.machine.submit(
            call.id, now, call.queue_deadline, call.queue_timeout or 0.0, again=again
        )
        deferred = self.settle(commands, now)
        if call.lease is None:
            self.mind_time()
        return deferred

    def delay(self, call: Call, moment: float) -> None:
        """Bring a call before the machine again, later."""
        self.calls[call.id] = call
        call.error = None
        call.delayed = True
        heapq.heappush(self._delayed, (moment, call.id, call))
        self.keeper.by(moment)

    def fail_delayed(self, now: float) -> None:
        """Tell the calls that wait to be tried again that there is no other try."""
        for _, number, call in self._delayed:
            if call.delayed:
                call.delayed = False
                self._fail(Fail(number, PoolClosed("the pool was shut down")), now)
        self._delayed.clear()

    def leave_queue(self, call: Call, now: float) -> bool:
        """Have a call wait no longer; False when it did not."""
        delayed, call.delayed = call.delayed, False
        waited = self.machine.cancel(call.id, now)
        if waited:
            # A boot may be one that nobody needs any more.
            self.mind_time()
        return waited or delayed

    def release(self, call: Call, now: float) -> Lease | None:
        """Forget a call, and return what it held."""
        self.calls.pop(call.id, None)
        if call.timeout is not None or call.doom is not None:
            self._timed.discard(call)
        lease, call.lease = call.lease, None
        if lease is not None:
            lease.call = None
            call.run_s = now - call.started_at
        if self.refusing and (self.placed or not self.calls):
            self.changed.notify_all()
        return lease

    def break_link(self, call: Call, now: float) -> Lease | None:
        """Close a call's link and end its process; return its lease."""
        self._timed.discard(call)
        lease, call.lease = call.lease, None
        if lease is not None:
            call.run_s = now - call.started_at
            lease.call = None
            lease.link.close()
            self._kill(lease)
        return lease

    def doom(
        self,
        call: Call,
        end: FlameError,
        now: float,
        grace: float = KILL_GRACE_SECONDS,
    ) -> None:
        """Have a running call's process killed: first that, then its link is cut."""
        assert call.lease is not None  # it runs
        call.doom = end
        call.deadline = now + grace + LAST_RESORT_SECONDS
        self._timed.add(call)
        self.keeper.by(call.deadline)
        self._kill(call.lease, grace)

    def _kill(self, lease: Lease, grace: float = KILL_GRACE_SECONDS) -> None:
        # Only while the slot is still this process: its successor runs another call.
        # The order is queued here, so before any that follows from the slot's end.
        if self.leases.get((lease.runner, lease.slot)) is lease:
            self.backend.kill_slot(lease.runner, lease.slot, grace)

    def tell_end(self, lease: Lease, end: FlameError) -> None:
        """Note why a slot is gone, for whoever holds it."""
        lease.end = end
        if lease.call is None:
            lease.link.close()
        else:
            lease.link.shutdown()
        self.changed.notify_all()

    # ------------------------------------------------------------------ commands

    def settle(self, commands: list[Command], now: float) -> list[Command]:
        """Carry out what is due at once; return what has to wait for the lock's end."""
        deferred: list[Command] = []
        for command in commands:
            if type(command) is Assign:
                self._assign(command, now)
            elif type(command) is Fail:
                self._fail(command, now)
            elif type(command) is Renew:
                # Its process ends with its link; nothing of it is killed in the middle.
                self.leases.pop((command.runner, command.slot)).link.close()
            else:
                self._note(command)
                deferred.append(command)
        return deferred

    def carry_out(self, commands: list[Command]) -> None:
        """Tell the backend; without the lock."""
        for command in commands:
            if isinstance(command, Boot):
                self.backend.boot(command.runner)
            elif isinstance(command, OpenSlot):
                self.backend.open_slot(command.runner, command.slot)
            elif isinstance(command, End):
                self.backend.end(command.runner, END_GRACE_SECONDS)

    def _assign(self, command: Assign, now: float) -> None:
        lease = self.leases[command.runner, command.slot]
        self.join(self.calls[command.call], lease, now)

    def join(self, call: Call, lease: Lease, now: float) -> None:
        """Give a call its slot."""
        lease.call = call
        call.lease = lease
        call.runner = runner = lease.runner
        call.queued_s = now - call.queued_at
        call.started_at = now
        info = self.infos.get(runner)
        if info is not None:
            call.node, call.boot_s = info.node, info.boot_seconds
        if call.timeout is not None:
            call.deadline = now + call.timeout
            self._timed.add(call)
            self.keeper.by(call.deadline)
        if call.future is not None:
            self._dispatch(call)
        elif call.lock is not None:
            call.lock.release()

    def _fail(self, command: Fail, now: float) -> None:
        call = self.calls.get(command.call)
        if call is None:
            return
        # Several callers may get it, each with a traceback of its own.
        call.error = copy.copy(command.error)
        call.queued_s = now - call.queued_at
        if call.future is not None:
            self._dispatch(call)
        else:
            self.release(call, now)
            if call.lock is not None:
                call.lock.release()

    def _note(self, command: Command) -> None:
        """Close what a runner leaves behind, and tell of runners that come and go."""
        if isinstance(command, End):
            was_had = self.infos.pop(command.runner, None) is not None
            for slot in range(self.spec.slots):
                lease = self.leases.pop((command.runner, slot), None)
                if lease is not None:
                    detail = f"the pool ended it ({command.reason})"
                    self.tell_end(lease, RunnerLost(command.runner, "Crashed", detail))
            if self.announce is not None:
                self.announce(_ended(self.spec.name, command, was_had=was_had))
        elif isinstance(command, Boot) and self.announce is not None:
            self.announce(GrowStart(pool=self.spec.name, runner=command.runner))

    # ------------------------------------------------------------------ time

    def mind_time(self) -> None:
        """Have the keeper look when the machine has something to do."""
        moment = self.machine.next_tick()
        if moment is not None:
            self.keeper.by(moment)

    def _tick(self) -> None:
        """Time passed; in the keeper's thread, without the lock."""
        with self.lock:
            if self.ended:
                return
            now = time.monotonic()
            for call in [c for c in self._timed if c.deadline <= now]:
                self._late(call, now)
            deferred = self.settle(self.machine.tick(now), now)
            while self._delayed and self._delayed[0][0] <= now:
                call = heapq.heappop(self._delayed)[2]
                if call.delayed:
                    call.delayed = False
                    deferred += self.enter(call, now, again=True)
            if self._delayed:
                self.keeper.by(self._delayed[0][0])
            for call in self._timed:
                self.keeper.by(call.deadline)
            self.mind_time()
        self.carry_out(deferred)

    def _late(self, call: Call, now: float) -> None:
        """First have the process killed, then cut the link."""
        lease = call.lease
        if lease is not None and call.doom is None:
            self.doom(call, CallTimeout("run", call.timeout or 0.0), now)
            return
        self._timed.discard(call)
        if lease is not None:
            lease.link.shutdown()


def _ended(pool: str, command: End, *, was_had: bool) -> Event:
    """Return what to tell of a runner that the pool ended."""
    name, reason = command.runner, command.reason
    if was_had:
        return Shrink(pool=pool, runner=name, reason=reason)
    error = BootError(name, "start", f"the pool gave it up ({reason})")
    return GrowEnd(pool=pool, runner=name, error=error, given_up=reason)
