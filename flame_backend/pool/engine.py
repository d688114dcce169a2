"""What a pool's calls run on: leases, the threads of submitted calls, and the end.

Apart from the Pool that people hold, so that a pool which nobody holds any more can be
collected, and ended, while its last calls finish.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from flame_backend.errors import CallTimeout, FlameError, LinkError
from flame_backend.pool.calls import Call, FlameFuture
from flame_backend.pool.crew import Crew
from flame_backend.pool.exchange import outcome, receive
from flame_backend.pool.leases import Leases
from flame_backend.pool.machine import Machine
from flame_backend.wire.frames import Kind

if TYPE_CHECKING:
    from flame_backend.backends.base import Backend, PoolSpec
    from flame_backend.pool.calls import Lease
    from flame_backend.pool.exchange import Outcome

# Kubernetes' own alphabet for suffixes: nothing that reads as a word or as another.
_SUFFIX: Final = "bcdfghjklmnpqrstvwxz2456789"

started: set[Engine] = set()
"""Engines with something to end when the interpreter exits."""


class Engine:
    """One pool's machinery, unstarted until its first call."""

    def __init__(self, spec: PoolSpec, max_runners: int, backend: Backend) -> None:
        self._spec = spec
        machine = Machine(spec.name, max_runners, spec.slots, _suffix)
        limit = max_runners * spec.slots + 1
        self._crew = Crew(limit, f"flame-{spec.name}", self._serve)
        self._leases = Leases(machine, backend, spec, self._crew.put)
        self._numbers = itertools.count(1)
        self._ending = threading.Lock()
        self._started = False
        self.status = self._leases.status
        self.shutdown_timeout = spec.shutdown_timeout

    def new_call(
        self, request: list[bytes], timeout: float | None, queue_timeout: float | None
    ) -> Call:
        """Return a call for `run` or `submit`."""
        return Call(next(self._numbers), request, timeout, queue_timeout)

    def _start(self) -> None:
        self._started = True
        started.add(self)

    # ------------------------------------------------------------------ in this thread

    def run(self, call: Call) -> Any:
        """Run a call; this thread waits, writes and reads."""
        if not self._started:
            self._start()
        try:
            done = self._attempt(call, self._leases.checkout(call))
            while done is None:
                done = self._attempt(call, self._leases.checkout(call, again=True))
        except BaseException as error:
            self._leases.give_up(call)
            _inform(error, call)
            raise
        value, raised = done
        if raised is None:
            return value
        _inform(raised, call)
        try:
            raise raised
        finally:
            # Or error -> traceback -> this frame -> error is a cycle.
            del raised, done

    def _attempt(self, call: Call, lease: Lease) -> Outcome | None:
        """Try a call on a slot; None when it was not sent in full.

        Raises:
            FlameError: It was sent, and has no outcome.
        """
        try:
            lease.link.send_parts(Kind.CALL, call.id, call.request)
        except LinkError:
            refusal = self._leases.unsent(call)
            if refusal is None:
                return None
            raise refusal from None
        try:
            done = outcome(receive(lease.link, call.id), self._spec)
        except LinkError as error:
            raise self._leases.broken(call, error) from None
        self._leases.checkin(call)
        if call.timed_out:
            raise CallTimeout("run", call.timeout or 0.0)
        return done

    # ------------------------------------------------------------------ in the crew's

    def submit(self, call: Call) -> FlameFuture[Any]:
        """Run a call in a thread of the crew; return its future.

        Raises:
            PoolClosed: The pool was shut down.
        """
        if not self._started:
            self._start()
        future: FlameFuture[Any] = FlameFuture(call, self._leases.withdraw)
        call.future = future
        self._leases.enqueue(call)
        return future

    def failed(self, error: FlameError) -> FlameFuture[Any]:
        """Return a future of a call that could not be made."""
        future: FlameFuture[Any] = FlameFuture(self.new_call([], None, None), _never)
        future.set_exception(error)
        return future

    def _serve(self, call: Call) -> None:
        """See to a call that has got a slot, or an error."""
        future, lease = call.future, call.lease
        assert future is not None  # only submitted calls are dispatched
        if not future.running() and not future.set_running_or_notify_cancel():
            self._leases.checkin(call)
            return
        if lease is None:
            assert call.error is not None  # there is one or the other
            self._leases.give_up(call)
            self._settle(call, None, call.error)
            return
        try:
            done = self._attempt(call, lease)
            if done is None:
                self._leases.enqueue(call, again=True)
                return
            value, error = done
        except BaseException as failure:  # noqa: BLE001 - a future carries whatever there is
            self._leases.give_up(call)
            value, error = None, failure
        self._settle(call, value, error)

    def _settle(self, call: Call, value: Any, error: BaseException | None) -> None:
        future = call.future
        assert future is not None  # as above
        # Futures are kept; requests are large.
        call.request = []
        if error is None:
            future.set_result(value)
        else:
            _inform(error, call)
            future.set_exception(error)

    # ------------------------------------------------------------------ end

    def refuse(self, *, cancel_futures: bool) -> None:
        """Take no more calls; cancel those that were submitted and wait."""
        for call in self._leases.refuse():
            if cancel_futures and call.future is not None:
                call.future.cancel()

    def finish(self, seconds: float | None) -> None:
        """Let calls finish, for so long; then end everything. Blocks."""
        self._leases.wait_idle(seconds)
        with self._ending:
            self._leases.end()
            # Their links are cut and their processes gone: a moment.
            self._crew.close()
        started.discard(self)

    def after_fork(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        self._leases.after_fork()


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
