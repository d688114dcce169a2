"""The pool: wrap any call in it and the call runs on a runner.

The face of this package; what it does is in engine, leases and machine. It also knows
when a process ends or forks: at exit its runners end, in a forked child it is a pool
that has not started.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import sys
import threading
import weakref
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from flame_backend.errors import (
    ConfigurationError,
    NestedCallError,
    NotSerializable,
    PayloadTooLarge,
)
from flame_backend.pool import engine as engines
from flame_backend.pool.engine import Engine
from flame_backend.pool.mapping import mapped
from flame_backend.pool.options import (
    BOOT_TIMEOUT,
    MAX_PAYLOAD,
    MAX_RESULT,
    SHUTDOWN_TIMEOUT,
    default_backend,
    fresh_instance,
    limit_seconds,
    pool_spec,
)
from flame_backend.runner.parent import parent
from flame_backend.wire.functions import dump_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from flame_backend.backends.base import Backend
    from flame_backend.pool.calls import Call, FlameFuture

P = ParamSpec("P")
T = TypeVar("T")

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


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
        shutdown_timeout: Seconds that calls may take to finish when the interpreter
            exits, or a runner is told to end.
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
        if type(max) is not int or max < 1:
            raise ConfigurationError("max", "a whole number of runners, 1 or more")
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
        self._timeout = limit_seconds("timeout", timeout)
        self._queue_timeout = limit_seconds("queue_timeout", queue_timeout)
        self._backend = default_backend() if backend is None else backend
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        """Be a pool that has not started."""
        self._engine = Engine(self._spec, self._max, self._backend)
        self._collected = weakref.finalize(self, _finish_soon, self._engine)
        # At exit, `_end_all` sees to it, in its own order.
        self._collected.atexit = False

    # ------------------------------------------------------------------ calls

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function on a runner and return its result, or raise what it raised.

        Raises:
            CallTimeout, RunnerLost, CallCrashed: It has no result.
            BootError: No runner could be had.
            NotSerializable, ResultNotSerializable, PayloadTooLarge: It cannot travel.
            PoolClosed: The pool was shut down.
        """
        result: T = self._engine.run(
            self._new_call(fn, args, kwargs, self._timeout, self._queue_timeout)
        )
        return result

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> FlameFuture[T]:
        """Run a function on a runner; return a future, with `.call` and `.phase`."""
        return self._submit(fn, args, kwargs, self._timeout, self._queue_timeout)

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
        size = 2 * self._max * self._spec.slots if buffersize is None else buffersize
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
        return {"name": self._spec.name, "max": self._max, **self._engine.status()}

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
        request = dump_call(fn, args, kwargs, limit=self._spec.max_payload)
        return self._engine.new_call(request, timeout, queue_timeout)

    def _submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        queue_timeout: float | None,
    ) -> FlameFuture[Any]:
        try:
            call = self._new_call(fn, args, kwargs, timeout, queue_timeout)
        except (NotSerializable, PayloadTooLarge) as error:
            # As every executor: what is wrong with a call is on its future.
            return self._engine.failed(error)
        return self._engine.submit(call)

    # ------------------------------------------------------------------ end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - signature of the base
        """Take no more calls; end all runners when the calls are done.

        Args:
            wait: Return when that has happened. False returns at once, and the rest
                happens beside the program; at its exit within shutdown_timeout.
            cancel_futures: Cancel what was submitted and has not started.
        """
        self._engine.refuse(cancel_futures=cancel_futures)
        if wait:
            self._collected.detach()
            self._engine.finish(None)
        else:
            self._collected()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        """Shut down; without waiting for calls when the program is being ended."""
        if kind is None or issubclass(kind, Exception):
            self.shutdown(wait=True)
        else:
            # Ctrl-C, sys.exit: nobody will collect the results.
            self._end(0.0)
        return False

    def _end(self, seconds: float) -> None:
        self._collected.detach()
        self._engine.refuse(cancel_futures=seconds <= 0)
        self._engine.finish(seconds)

    def _after_fork(self) -> None:
        self._collected.detach()
        self._engine.after_fork()
        # Another process' pool: its runners must not be taken for the parent's.
        self._spec = replace(self._spec, instance=fresh_instance())
        self._begin()


class Options:
    """A pool seen with other limits; made by `Pool.options`."""

    def __init__(
        self, pool: Pool, timeout: float | None, queue_timeout: float | None
    ) -> None:
        self._pool = pool
        self._timeout = limit_seconds("timeout", timeout)
        self._queue_timeout = limit_seconds("queue_timeout", queue_timeout)

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `Pool.call`."""
        pool = self._pool
        call = pool._new_call(fn, args, kwargs, self._timeout, self._queue_timeout)  # noqa: SLF001 - two halves
        result: T = pool._engine.run(call)  # noqa: SLF001
        return result

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> FlameFuture[T]:
        """As `Pool.submit`."""
        pool = self._pool
        return pool._submit(fn, args, kwargs, self._timeout, self._queue_timeout)  # noqa: SLF001


def _finish_soon(engine: Engine) -> None:
    """Let a pool's calls finish and end it, beside the program."""
    engine.refuse(cancel_futures=False)
    with suppress(RuntimeError):  # the interpreter is exiting, which ends it as well
        threading.Thread(target=engine.finish, args=[None], daemon=True).start()


def _end_all() -> None:
    """At exit: let calls finish for a while, unless the user has had enough."""
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    for engine in list(engines.started):
        engine.refuse(cancel_futures=interrupted)
        with suppress(Exception):
            engine.finish(0.0 if interrupted else engine.shutdown_timeout)


def _fork_all() -> None:
    engines.started.clear()
    for pool in list(_pools):
        pool._after_fork()  # noqa: SLF001 - the module's own class


atexit.register(_end_all)
os.register_at_fork(after_in_child=_fork_all)
