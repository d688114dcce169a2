"""What a pool's calls run on: leases, the threads of submitted calls, and the end.

Apart from the Pool that people hold, so that a pool which nobody holds any more can be
collected, and ended, while its last calls finish.
"""

from __future__ import annotations

import itertools
import random
import secrets
import threading
import time
from concurrent.futures import CancelledError, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.inline import InlineBackend
from flame_backend.errors import ConfigurationError, FlameError, LinkError
from flame_backend.events import CallDone
from flame_backend.pool.announcer import Announcer
from flame_backend.pool.calls import Call, FlameFuture, Lease, PlacedCall
from flame_backend.pool.crew import Crew
from flame_backend.pool.exchange import answered
from flame_backend.pool.leases import Leases
from flame_backend.pool.ledger import Ledger
from flame_backend.pool.machine import Machine
from flame_backend.pool.placing import Placements, left, were_killed
from flame_backend.pool.reports import Reports
from flame_backend.pool.status import pool_status
from flame_backend.wire.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.backends.base import Backend, PoolSpec
    from flame_backend.events import Event
    from flame_backend.pool.calls import CallOptions
    from flame_backend.pool.commands import Sizing
    from flame_backend.pool.exchange import Outcome
    from flame_backend.pool.status import PoolStatus

# Kubernetes' own alphabet for suffixes: nothing that reads as a word or as another.
_SUFFIX: Final = "bcdfghjklmnpqrstvwxz2456789"

# Named with each call, and an enum is slow to name its members.
_CALL: Final = int(Kind.CALL)

started: set[Engine] = set()
"""Engines with something to end when the interpreter exits."""


class Engine:
    """One pool's machinery, unstarted until its first use.

    Args:
        spec: What the backend must know.
        sizing: How large the pool is.
        backend: Where runners come from.
        on_event: Told of events; None for nobody.
        initializer: The request that each slot serves first; None for none.
    """

    def __init__(
        self,
        spec: PoolSpec,
        sizing: Sizing,
        backend: Backend,
        on_event: Callable[[Event], object] | None,
        initializer: list[bytes] | None,
    ) -> None:
        self._spec = spec
        self._tail = backend.log_tail
        announcer = None if on_event is None else Announcer(spec.name, on_event)
        self._announcer = announcer
        machine = Machine(spec.name, sizing, _suffix, random.random)
        limit = _crew_limit(sizing.max, spec.slots)
        self._crew = Crew(limit, f"flame-{spec.name}", self._work)
        self._ledger = Ledger(machine, backend, spec, self._crew.put, announcer)
        self._reports = Reports(self._ledger, initializer, self._crew.put)
        self._leases = Leases(self._ledger, self._reports)
        self.placements = Placements(self._ledger, self._settle)
        self._numbers = itertools.count(1)
        self._ending = threading.Lock()
        self._started = False
        self.shutdown_timeout = spec.shutdown_timeout

    def new_call(self, request: list[bytes], options: CallOptions) -> Call:
        """Return a call for `run` or `submit`."""
        return Call(
            next(self._numbers),
            request,
            options.timeout,
            options.queue_timeout,
            options.retry,
            link=options.link,
            tail=self._tail,
        )

    def _start(self) -> None:
        self._started = True
        started.add(self)

    # ------------------------------------------------------------------ in this thread

    def run(self, call: Call) -> Any:
        """Run a call; this thread waits, writes and reads."""
        if not self._started:
            self._start()
        value, raised = self._tried(call)
        while raised is not None:
            pause = self._pause(call, raised)
            if pause is None:
                break
            value, raised = self._tried(call, pause)
        if self._announcer is not None:
            self._announce(call, raised)
        if raised is None:
            return value
        _inform(raised, call)
        try:
            raise raised
        finally:
            # Or error -> traceback -> this frame -> error is a cycle.
            del raised

    def _tried(self, call: Call, pause: float | None = None) -> Outcome:
        """Try a call until it has been sent in full; return how it ended.

        Raises:
            BaseException: Ctrl-C and the like, after what the call held is given up.
        """
        again = pause is not None
        try:
            lease = self._leases.checkout(call, again=again, pause=pause or 0.0)
            while (done := self._attempt(call, lease)) is None:
                lease = self._leases.checkout(call, again=True)
        except Exception as error:  # noqa: BLE001 - an outcome, raised by `run`
            self._leases.give_up(call)
            return None, error
        except BaseException as error:
            self._leases.give_up(call)
            if self._announcer is not None:
                self._announce(call, error)
            raise
        return done

    def _attempt(self, call: Call, lease: Lease) -> Outcome | None:
        """Try a call on a slot; None when it was not sent in full.

        Raises:
            FlameError: It was sent, and has no outcome.
        """
        try:
            lease.link.send_parts(_CALL, call.id, call.request)
        except LinkError:
            refusal = self._leases.unsent(call)
            if refusal is None:
                return None
            raise refusal from None
        if type(call) is PlacedCall:
            return self.placements.outlast(call, lease)
        try:
            done = answered(lease.link, call, self._spec)
        except LinkError as error:
            raise self._leases.broken(call, error) from None
        self._leases.checkin(call)
        if call.doom is not None:
            raise call.doom
        return done

    def _pause(self, call: Call, error: BaseException) -> float | None:
        """Return the seconds before another try, None when there is none."""
        if call.retry is None or isinstance(call.doom, CancelledError):
            return None
        pause = call.retry.pause(error, call.tries)
        if pause is not None:
            call.tries += 1
            call.attempt += 1
            call.queue_deadline = call.doom = None
        return pause

    # ------------------------------------------------------------------ in the crew's

    def submit(self, call: Call) -> FlameFuture[Any]:
        """Run a call in a thread of the crew; return its future.

        Raises:
            PoolClosed: The pool was shut down.
        """
        if not self._started:
            self._start()
        future: FlameFuture[Any] = FlameFuture(call, self._withdraw, self._abandon)
        call.future = future
        self._leases.enqueue(call)
        self._crew.expect(len(self._ledger.calls))
        return future

    def new_placement(self, request: list[bytes], options: CallOptions) -> PlacedCall:
        """Return a call for `place`.

        Raises:
            ConfigurationError: There are no processes to place.
        """
        if isinstance(self._ledger.backend, InlineBackend):
            reason = "InlineBackend has no processes; LocalBackend has"
            raise ConfigurationError("place", reason)
        number = next(self._numbers)
        return PlacedCall(number, request, options.queue_timeout, self._tail)

    def place(self, call: PlacedCall) -> FlameFuture[Any]:
        """Run a placement; return its future.

        Raises:
            PoolClosed: The pool was shut down.
        """
        self.placements.add(call)
        try:
            return self.submit(call)
        except BaseException:
            self.placements.forget(call)
            raise

    def _withdraw(self, call: Call) -> bool:
        withdrawn = self._leases.withdraw(call)
        if withdrawn and self._announcer is not None:
            self._announce(call, call.doom)
        return withdrawn

    def _abandon(self, call: Call) -> bool:
        return self._withdraw(call) or self._leases.abandon(call)

    def failed(self, error: FlameError, options: CallOptions) -> FlameFuture[Any]:
        """Return a future of a call that could not be made."""
        call = self.new_call([], options)
        call.future = FlameFuture(call, _never, _never)
        self._settle(call, None, error)
        return call.future

    def _work(self, job: Call | Lease) -> None:
        """See to a call, or to a slot that has to be made ready for calls."""
        if isinstance(job, Call):
            self._serve(job)
            return
        call, failure = job.call, None
        assert call is not None  # the initializer
        try:
            job.link.send_parts(_CALL, call.id, call.request)
            _, failure = answered(job.link, call, self._spec)
        except LinkError as error:
            failure = error
        self._reports.prepared(job, failure)

    def _serve(self, call: Call) -> None:
        """See to a call that has got a slot, or an error."""
        lease, error = call.lease, call.error
        value: Any = None
        raised: BaseException | None
        if call.doom is not None and lease is not None:
            # It ran out of time, or was cancelled, before it began.
            self._leases.checkin(call)
            self._settle(call, None, call.doom)
            return
        try:
            done = (None, error) if lease is None else self._attempt(call, lease)
            if done is None:
                self._leases.enqueue(call, again=True)
                if isinstance(call, PlacedCall) and call.stopped:
                    # While it was neither here nor there.
                    self.placements.stop(call)
                return
            value, raised = done
        except BaseException as failure:  # noqa: BLE001 - a future carries whatever there is
            raised = failure
        if raised is not None:
            self._leases.give_up(call)
        pause = None if raised is None else self._pause(call, raised)
        if pause is not None:
            self._leases.enqueue(call, again=True, pause=pause)
            return
        self._settle(call, value, raised)

    def _settle(self, call: Call, value: Any, error: BaseException | None) -> None:
        future = call.future
        assert future is not None  # only submitted calls come here
        if isinstance(call, PlacedCall):
            self.placements.forget(call)
            error = call.told(error)
        # Futures are kept; requests are large.
        call.request = []
        if self._announcer is not None:
            self._announce(call, error)
        with suppress(InvalidStateError):  # cancelled, and told so by who did that
            if error is None:
                future.set_result(value)
            elif not isinstance(call.doom, CancelledError):
                _inform(error, call)
                future.set_exception(error)

    def _announce(self, call: Call, error: BaseException | None) -> None:
        assert self._announcer is not None  # the caller has looked
        pool, info = self._spec.name, call.info()
        self._announcer(CallDone(pool=pool, call=info, error=error))

    # ------------------------------------------------------------------ size

    def start(self) -> None:
        """Come into use without a call; errors as for `Leases.start`."""
        if not self._started:
            self._start()
        self._leases.start()

    def wait_ready(self, seconds: float | None) -> None:
        """Wait until the pool has its smallest size; as `Leases.wait_ready`."""
        if not self._started:
            self._start()
        self._leases.wait_ready(seconds)

    def resize(self, smallest: int | None, largest: int | None) -> None:
        """Give the pool another size."""
        if not self._started:
            self._start()
        most = self._leases.resize(smallest, largest)
        self._crew.limit = _crew_limit(most, self._spec.slots)

    @property
    def max_slots(self) -> int:
        """How many calls may run at a time."""
        return self._ledger.most * self._spec.slots

    def status(self) -> PoolStatus:
        """Return what there is."""
        return pool_status(self._ledger)

    # ------------------------------------------------------------------ end

    def refuse(self, *, cancel_futures: bool) -> None:
        """Take no more calls; cancel those that were submitted and wait."""
        for call in self._leases.refuse():
            placed = isinstance(call, PlacedCall)
            if cancel_futures and call.future is not None and not placed:
                call.future.cancel_waiting()

    def finish(self, seconds: float | None) -> bool:
        """Let calls finish, for so long; then end everything. Blocks.

        In a callback, which whoever waits for the pool would wait for, it does not
        block: everything ends beside it.

        Returns:
            False when some did not finish in that time, or it did not wait for them.
        """
        announcer = self._announcer
        if self._crew.is_here() or (announcer is not None and announcer.is_here()):
            self.finish_beside(seconds)
            return False
        deadline = None if seconds is None else time.monotonic() + seconds
        placed = self.placements.end(deadline)
        finished = self._leases.wait_idle(left(deadline)) and not were_killed(placed)
        with self._ending:
            self._leases.end()
            # Their links are cut and their processes gone: a moment.
            self._crew.close()
            if announcer is not None:
                announcer.close()
        started.discard(self)
        return finished

    def finish_beside(self, seconds: float | None) -> None:
        """As `finish`, in a thread of its own."""
        with suppress(RuntimeError):  # the interpreter is exiting, which ends it, too
            threading.Thread(target=self.finish, args=[seconds], daemon=True).start()

    def after_fork(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        self._leases.after_fork()


def _crew_limit(runners: int, slots: int) -> int:
    """As many threads as calls that run, and one to tell of calls that failed."""
    return runners * slots + 1


def _inform(error: BaseException, call: Call) -> None:
    """Give an error the facts of its call."""
    for found in (error, error.__cause__):
        if isinstance(found, FlameError):
            with suppress(AttributeError):
                found.call = call.info()


def _never(_call: Call) -> bool:
    return False


def _suffix() -> str:
    return "".join(secrets.choice(_SUFFIX) for _ in range(8))
