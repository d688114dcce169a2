"""The pool: wrap any call in it and the call runs on a runner.

The calling thread itself writes the request to its slot's link and reads the reply: no
thread stands in between. The machine decides under one lock; what it commands is
carried out outside that lock. One keeper thread owns deadlines and sleeps until the
earliest one; the backend has threads of its own.

At most once: a call that was not sent in full is given to another runner silently; one
that was sent ends in its result, in `RunnerLost` or in `CallCrashed`.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import itertools
import os
import secrets
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar

from flame_backend.errors import (
    CallCrashed,
    CallTimeout,
    ConfigurationError,
    FlameError,
    LinkError,
    MalformedFrame,
    NestedCallError,
    PoolClosed,
    RunnerLost,
)
from flame_backend.pool.calls import Call, FlameFuture
from flame_backend.pool.machine import Assign, Boot, End, Fail, Machine, OpenSlot
from flame_backend.pool.mapping import mapped
from flame_backend.pool.options import (
    BOOT_TIMEOUT,
    MAX_PAYLOAD,
    MAX_RESULT,
    SHUTDOWN_TIMEOUT,
    default_backend,
    pool_spec,
)
from flame_backend.pool.workers import Workers
from flame_backend.runner.parent import parent
from flame_backend.wire.decoding import decode
from flame_backend.wire.exceptions import decode_exception
from flame_backend.wire.frames import Kind
from flame_backend.wire.functions import dump_call, load_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from flame_backend.backends.base import Backend, RunnerInfo
    from flame_backend.errors import BootError
    from flame_backend.pool.machine import Command
    from flame_backend.wire.frames import Frame
    from flame_backend.wire.link import Link

P = ParamSpec("P")
T = TypeVar("T")

CAUSE_SECONDS: Final = 5.0
"""How long a caller whose link broke waits for the backend to say why."""

LAST_RESORT_SECONDS: Final = 4.0
"""After a kill was asked for: the link itself is cut when nothing has ended."""

_SUFFIX: Final = "abcdefghijkmnpqrstuvwxyz23456789"

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class _Lease:
    """A slot in a caller's hands."""

    __slots__ = ("busy", "generation", "link", "runner", "slot")

    def __init__(self, runner: str, slot: int, link: Link, generation: int) -> None:
        self.runner = runner
        self.slot = slot
        self.link = link
        self.generation = generation
        self.busy = False


class _Waiter:
    """A caller that waits for its slot: a bare lock is the cheapest event."""

    __slots__ = ("call", "error", "lease", "lock")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.lease: _Lease | None = None
        self.error: FlameError | None = None
        self.lock = threading.Lock()
        self.lock.acquire()


class Pool(concurrent.futures.Executor):
    """A pool of runners, booted on first use and kept until `shutdown`.

    A `concurrent.futures.Executor`: submit, map and shutdown have the standard
    meaning; `call` runs a function and returns its result.

    Args:
        name: DNS label of at most 40 characters; part of runner names and logs.
        max: Most runners at a time, in this process.
        max_concurrency: Calls a runner serves at a time, each in a process of its own.
        timeout: Seconds a call may run; None for no limit.
        queue_timeout: Seconds a call may wait for a slot; None for no limit. A pool
            whose runners do not boot fails its callers all the same.
        boot_timeout: Seconds a runner may take to be ready.
        shutdown_timeout: Seconds running calls may take to finish at shutdown.
        results: "data" decodes what runners send without executing anything;
            "pickle" lets a runner execute code in this process.
        result_types: Dataclasses, enums and exceptions that results may hold.
        max_result: Largest result in bytes, large buffers aside.
        max_payload: Largest request in bytes.
        preload: Modules a runner imports before it is ready.
        backend: Where runners come from; None chooses by $FLAME_BACKEND, else pods
            inside a pod, else local processes.

    Raises:
        ConfigurationError: An option breaks its rule.
    """

    def __init__(  # noqa: PLR0913 - one argument for each option
        self,
        name: str,
        *,
        max: int,  # noqa: A002 - FLAME's word
        max_concurrency: int = 1,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        boot_timeout: float = BOOT_TIMEOUT,
        shutdown_timeout: float = SHUTDOWN_TIMEOUT,
        results: Literal["data", "pickle"] = "data",
        result_types: Sequence[type] = (),
        max_result: int = MAX_RESULT,
        max_payload: int = MAX_PAYLOAD,
        preload: Sequence[str] = (),
        backend: Backend | None = None,
    ) -> None:
        if max < 1:
            raise ConfigurationError("max", "at least 1 runner")
        self._spec = pool_spec(
            name,
            max_concurrency=max_concurrency,
            boot_timeout=boot_timeout,
            shutdown_timeout=shutdown_timeout,
            results=results,
            result_types=result_types,
            max_result=max_result,
            max_payload=max_payload,
            preload=preload,
        )
        self._max = max
        self._timeout = timeout
        self._queue_timeout = queue_timeout
        self._backend = default_backend() if backend is None else backend
        self._closed = False
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        """Be a pool that has not started; also in a forked child."""
        self._machine = Machine(self._spec.name, self._max, self._spec.slots, _suffix)
        self._lock = threading.Lock()
        self._opened = False
        self._links: dict[tuple[str, int], _Lease] = {}
        self._infos: dict[str, RunnerInfo] = {}
        self._waiters: dict[int, _Waiter] = {}
        self._numbers = itertools.count(1)
        self._ends: dict[tuple[str, int], FlameError] = {}
        self._told = threading.Condition(self._lock)
        self._deadlines: dict[int, tuple[float, Call]] = {}
        self._keeper: threading.Thread | None = None
        self._alarm = threading.Condition(self._lock)
        self._workers: Workers | None = None
        self._generation = itertools.count(1)

    # ------------------------------------------------------------------ calls

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function on a runner and return its result, or raise what it raised.

        Raises:
            CallTimeout, RunnerLost, CallCrashed: It has no result.
            BootError: No runner could be had.
            NotSerializable, ResultNotSerializable, PayloadTooLarge: It cannot travel.
            PoolClosed: The pool was shut down.
        """
        result: T = self._run(
            self._new_call(fn, args, kwargs, self._timeout, self._queue_timeout)
        )
        return result

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> FlameFuture[T]:
        """Run a function on a runner; return a future, with `.call` and `.phase`."""
        call = self._new_call(fn, args, kwargs, self._timeout, self._queue_timeout)
        return self._submit(call)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[T]:
        """Run a function over inputs, which are pulled only as results are taken.

        Args:
            fn: What to run.
            *iterables: Inputs, as for the builtin map.
            timeout: Seconds from now until the last result.
            chunksize: Inputs sent to a runner at a time.
            buffersize: Chunks in flight; None for twice the pool's slots.
            ordered: Results in the order of inputs; False for as they come.
            return_exceptions: Yield an exception in its place and go on.
        """
        size = buffersize or 2 * self._max * self._spec.slots
        return mapped(
            self.submit,
            fn,
            zip(*iterables, strict=False),
            timeout=timeout,
            chunksize=chunksize,
            buffersize=size,
            ordered=ordered,
            return_exceptions=return_exceptions,
        )

    def options(
        self,
        *,
        timeout: float | Literal["pool"] | None = "pool",
        queue_timeout: float | Literal["pool"] | None = "pool",
    ) -> Options:
        """Return the pool with other limits for the calls made through it."""
        return Options(
            self,
            self._timeout if timeout == "pool" else timeout,
            self._queue_timeout if queue_timeout == "pool" else queue_timeout,
        )

    def status(self) -> dict[str, Any]:
        """Return facts about runners, slots and waiting calls."""
        with self._lock:
            facts: dict[str, Any] = {"name": self._spec.name, "max": self._max}
            facts |= self._machine.counts()
            facts["runners"] = list(self._machine.runners)
            facts["backend"] = self._backend.describe() if self._opened else {}
        return facts

    def _new_call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        queue_timeout: float | None,
    ) -> Call:
        if parent() is not None:
            msg = "a runner does not use pools of its own; call from the parent"
            raise NestedCallError(msg)
        return Call(next(self._numbers), fn, args, kwargs, timeout, queue_timeout)

    def _submit(self, call: Call) -> FlameFuture[Any]:
        future: FlameFuture[Any] = FlameFuture()
        with self._lock:
            self._require_open()
            if self._workers is None:
                limit = self._max * self._spec.slots
                self._workers = Workers(limit, f"flame-{self._spec.name}")
            self._workers.submit(future, lambda: self._fulfil(future, call))
        return future

    def _fulfil(self, future: FlameFuture[Any], call: Call) -> None:
        try:
            result = self._run(call)
        except BaseException as error:  # noqa: BLE001 - a future carries whatever there is
            future._call = call.info()  # noqa: SLF001 - the pool's own class
            future.set_exception(error)
        else:
            future._call = call.info()  # noqa: SLF001
            future.set_result(result)

    # ------------------------------------------------------------------ one call

    def _run(self, call: Call) -> Any:
        parts = dump_call(
            call.function, call.args, call.kwargs, limit=self._spec.max_payload
        )
        try:
            while True:
                lease = self._checkout(call)
                started = time.perf_counter()
                try:
                    lease.link.send_parts(Kind.CALL, call.id, parts)
                except LinkError as error:
                    self._broken(call, lease)
                    # Not sent in full, so not started: another runner takes it.
                    if call.timed_out or self._closed:
                        raise self._cause(call, lease, error, started=False) from None
                    call.attempt += 1
                    continue
                return self._reply(call, lease, started)
        except BaseException as error:
            if isinstance(error, FlameError):
                error.call = call.info()
            raise

    def _reply(self, call: Call, lease: _Lease, started: float) -> Any:
        """Read the reply, give the slot back, and return or raise."""
        try:
            if call.timeout is not None:
                self._arm(call, time.monotonic() + call.timeout)
            frame = lease.link.receive()
            while frame.kind is Kind.PROGRESS:
                frame = lease.link.receive()
            _require_reply(frame, call)
        except BaseException as error:
            self._broken(call, lease)
            call.run_s = time.perf_counter() - started
            if isinstance(error, LinkError):
                raise self._cause(call, lease, error, started=True) from None
            raise
        call.run_s = time.perf_counter() - started
        self._checkin(call, lease)
        if call.timed_out:
            raise CallTimeout("run", call.timeout or 0.0)
        if frame.kind is Kind.ERROR:
            raise self._raised(frame.body, list(frame.segments))
        if self._spec.results == "pickle":
            return load_object(bytes(frame.body))
        return decode(frame.body, frame.segments, result_types=self._spec.result_types)

    def _raised(self, body: Any, segments: list[bytes]) -> BaseException:
        pickled = segments.pop() if self._spec.results == "pickle" else b""
        error = decode_exception(body, segments, result_types=self._spec.result_types)
        if not pickled:
            return error
        original = load_object(pickled)
        if not isinstance(original, Exception):
            return error
        original.__cause__ = error.__cause__ or error
        return original

    def _checkout(self, call: Call) -> _Lease:
        """Get a slot, waiting for one if need be."""
        queued = time.monotonic()
        waiter = _Waiter(call)
        with self._lock:
            self._open()
            self._waiters[call.id] = waiter
            commands = self._machine.submit(call.id, queued, call.queue_timeout)
            deferred = self._settle(commands)
            if waiter.lease is None and waiter.error is None:
                self._ensure_keeper()
        self._carry_out(deferred)
        try:
            waiter.lock.acquire()
        except BaseException:
            self._abandon(waiter)
            raise
        if waiter.error is not None:
            raise waiter.error
        lease = waiter.lease
        assert lease is not None  # released only with a lease or an error
        call.queued_s += time.monotonic() - queued
        call.runner = lease.runner
        info = self._infos.get(lease.runner)
        if info is not None:
            call.node, call.boot_s = info.node, info.boot_seconds
        call.lease = lease
        return lease

    def _abandon(self, waiter: _Waiter) -> None:
        """A waiting caller was interrupted (Ctrl-C)."""
        with self._lock:
            self._machine.cancel(waiter.call.id)
            self._waiters.pop(waiter.call.id, None)
            lease = waiter.lease
        if lease is not None:
            self._checkin(waiter.call, lease)

    def _checkin(self, call: Call, lease: _Lease) -> None:
        with self._lock:
            lease.busy = False
            if call.timeout is not None:
                self._deadlines.pop(call.id, None)
            if call.timed_out:
                # Its process is being killed; the slot comes back with the next one.
                deferred: list[Command] = []
            else:
                deferred = self._settle(
                    self._machine.finished(lease.runner, lease.slot)
                )
        self._carry_out(deferred)

    def _broken(self, call: Call, lease: _Lease) -> None:
        """The link is of no use any more; end its process, whatever it does."""
        lease.link.close()
        with self._lock:
            self._deadlines.pop(call.id, None)
        self._backend.kill_slot(lease.runner, lease.slot)

    def _cause(
        self, call: Call, lease: _Lease, error: LinkError, *, started: bool
    ) -> FlameError:
        """Say why a link ended, as far as the backend comes to know it."""
        if call.timed_out:
            return CallTimeout("run", call.timeout or 0.0)
        if isinstance(error, MalformedFrame):
            return RunnerLost(lease.runner, "Unknown", f"bad bytes: {error}", started)
        key = (lease.runner, lease.generation)
        with self._lock:
            self._told.wait_for(lambda: key in self._ends, CAUSE_SECONDS)
            known = self._ends.pop(key, None)
        if isinstance(known, RunnerLost):
            return known.seen_by_call(started=started)
        return known or RunnerLost(lease.runner, "Unknown", str(error), started)

    # ------------------------------------------------------------------ commands

    def _settle(self, commands: list[Command]) -> list[Command]:
        """Carry out what is due under the lock; return what has to wait for its end."""
        deferred: list[Command] = []
        for command in commands:
            if isinstance(command, Assign):
                waiter = self._waiters.pop(command.call)
                waiter.lease = self._links[command.runner, command.slot]
                waiter.lease.busy = True
                waiter.lock.release()
            elif isinstance(command, Fail):
                failed = self._waiters.pop(command.call, None)
                if failed is not None:
                    failed.error = command.error
                    failed.lock.release()
            else:
                deferred.append(command)
        return deferred

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Boot):
                self._backend.boot(command.runner)
            elif isinstance(command, OpenSlot):
                self._backend.open_slot(command.runner, command.slot)
            elif isinstance(command, End):
                self._backend.end(command.runner, 0.0)

    def _open(self) -> None:
        """Start the backend with the first call; holds the lock."""
        self._require_open()
        if not self._opened:
            self._backend.open(self._spec, self)
            self._opened = True

    def _require_open(self) -> None:
        if self._closed:
            msg = f"pool {self._spec.name} was shut down"
            raise PoolClosed(msg)

    # ------------------------------------------------------------------ Sink

    def ready(self, info: RunnerInfo) -> None:
        """A runner is ready."""
        with self._lock:
            self._infos[info.runner] = info
            deferred = self._settle(self._machine.ready(info.runner))
        self._carry_out(deferred)

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """A slot is open."""
        with self._lock:
            if self._closed or runner not in self._machine.runners:
                link.close()
                return
            lease = _Lease(runner, slot, link, next(self._generation))
            self._links[runner, slot] = lease
            deferred = self._settle(self._machine.slot_opened(runner, slot))
        self._carry_out(deferred)

    def slot_ended(
        self, runner: str, slot: int, exit_code: int | None, signal: int | None
    ) -> None:
        """A slot's process ended; whoever holds its link learns why."""
        with self._lock:
            lease = self._links.pop((runner, slot), None)
            if lease is not None:
                self._tell_end(lease, CallCrashed(runner, exit_code, signal))
            deferred = self._settle(self._machine.slot_ended(runner, slot))
        self._carry_out(deferred)

    def boot_failed(self, runner: str, error: BootError) -> None:
        """A boot failed."""
        with self._lock:
            now = time.monotonic()
            deferred = self._settle(self._machine.boot_failed(runner, error, now))
            self._ensure_keeper()
        self._carry_out(deferred)

    def lost(self, runner: str, error: RunnerLost) -> None:
        """A runner is gone; its callers learn why."""
        with self._lock:
            for key in [key for key in self._links if key[0] == runner]:
                self._tell_end(self._links.pop(key), error)
            deferred = self._settle(self._machine.lost(runner, time.monotonic()))
        self._carry_out(deferred)

    def phase(self, runner: str, phase: str, detail: str) -> None:
        """A boot moved on; nobody listens in this version."""

    def _tell_end(self, lease: _Lease, error: FlameError) -> None:
        """End a link; whoever reads it will ask why. Holds the lock."""
        if lease.busy:
            self._ends[lease.runner, lease.generation] = error
            lease.link.shutdown()
            self._told.notify_all()
        else:
            lease.link.close()

    # ------------------------------------------------------------------ deadlines

    def _arm(self, call: Call, deadline: float) -> None:
        with self._lock:
            self._deadlines[call.id] = (deadline, call)
            self._ensure_keeper()

    def _ensure_keeper(self) -> None:
        """Start or wake the keeper; holds the lock."""
        if self._keeper is None and not self._closed:
            self._keeper = threading.Thread(
                target=self._keep, name=f"flame-keeper-{self._spec.name}", daemon=True
            )
            self._keeper.start()
        else:
            self._alarm.notify()

    def _keep(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                now = time.monotonic()
                late = [call for at, call in self._deadlines.values() if at <= now]
                for call in late:
                    self._late(call, now)
                deferred = self._settle(self._machine.tick(now))
                if not late and not deferred:
                    self._alarm.wait(self._until_next(now))
            for call in late:
                self._backend.kill_slot(call.lease.runner, call.lease.slot)
            self._carry_out(deferred)

    def _late(self, call: Call, now: float) -> None:
        """First have the process killed, then cut the link; holds the lock."""
        if call.timed_out:
            del self._deadlines[call.id]
            call.lease.link.shutdown()
        else:
            call.timed_out = True
            self._deadlines[call.id] = (now + LAST_RESORT_SECONDS, call)

    def _until_next(self, now: float) -> float | None:
        moments = [at for at, _ in self._deadlines.values()]
        tick = self._machine.next_tick()
        if tick is not None:
            moments.append(tick)
        return max(0.0, min(moments) - now) if moments else None

    # ------------------------------------------------------------------ end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - signature of the base
        """Take no more calls; end all runners.

        Args:
            wait: Let submitted calls finish first. False ends them.
            cancel_futures: Cancel what has not started.
        """
        with self._lock:
            workers = self._workers
        if workers is not None:
            workers.close(cancel_futures=cancel_futures)
            if wait:
                workers.join()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._settle([c for c in self._machine.close() if isinstance(c, Fail)])
            self._alarm.notify_all()
            leases = list(self._links.values())
            self._links.clear()
            opened = self._opened
        for lease in leases:
            lease.link.shutdown()
        if opened:
            self._backend.close(0.0)
        if self._keeper is not None and self._keeper is not threading.current_thread():
            self._keeper.join()
        if workers is not None:
            workers.join()
        for lease in leases:
            lease.link.close()

    def __exit__(self, kind: object, *_: object) -> None:
        """Shut down; after an exception, what has not started is cancelled."""
        self.shutdown(wait=True, cancel_futures=kind is not None)

    def _after_fork(self) -> None:
        """In a forked child: an unstarted pool; the parent's runners are its own."""
        backend = self._backend
        self._reset()
        fresh = getattr(backend, "after_fork", None)
        if fresh is not None:
            fresh()


class Options:
    """A pool seen with other limits; made by `Pool.options`."""

    def __init__(
        self, pool: Pool, timeout: float | None, queue_timeout: float | None
    ) -> None:
        self._pool = pool
        self._limits = (timeout, queue_timeout)

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `Pool.call`."""
        pool = self._pool
        result: T = pool._run(pool._new_call(fn, args, kwargs, *self._limits))  # noqa: SLF001 - two halves
        return result

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> FlameFuture[T]:
        """As `Pool.submit`."""
        pool = self._pool
        return pool._submit(pool._new_call(fn, args, kwargs, *self._limits))  # noqa: SLF001


def _require_reply(frame: Frame, call: Call) -> None:
    if frame.call_id != call.id or frame.kind not in {Kind.RESULT, Kind.ERROR}:
        msg = f"{frame.kind.name} of call {frame.call_id}"
        raise MalformedFrame(msg)


def _suffix() -> str:
    return "".join(secrets.choice(_SUFFIX) for _ in range(8))


def _shut_down_all() -> None:
    for pool in list(_pools):
        with suppress(Exception):
            pool.shutdown(wait=False, cancel_futures=True)


def _fork_all() -> None:
    for pool in list(_pools):
        pool._after_fork()  # noqa: SLF001 - the module's own class


atexit.register(_shut_down_all)
os.register_at_fork(after_in_child=_fork_all)
