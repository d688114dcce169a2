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
import weakref
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from flame_backend.errors import ConfigurationError
from flame_backend.pool import engine as engines
from flame_backend.pool.calls import CallOptions
from flame_backend.pool.engine import Engine
from flame_backend.pool.forms import Forms, Home
from flame_backend.pool.options import (
    BOOT_TIMEOUT,
    IDLE_SHUTDOWN_AFTER,
    MAX_PAYLOAD,
    MAX_RESULT,
    SCALE_UP_TIMEOUT,
    SHUTDOWN_TIMEOUT,
    chosen_backend,
    fresh_instance,
    initializer_request,
    limit_seconds,
    pool_sizing,
    pool_spec,
)
from flame_backend.pool.retrying import Retry, retry_policy
from flame_backend.runner.parent import parent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from flame_backend.backends.base import Backend
    from flame_backend.events import Event
    from flame_backend.pool.status import PoolStatus

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool(Forms, concurrent.futures.Executor):
    """A pool of runners that boot on demand and go away when idle.

    A `concurrent.futures.Executor`: submit, map and shutdown have the standard
    meaning (docs/process-pool.md says what differs); `call` runs a function and
    returns its result, `place` starts a process that stays.

    Args:
        name: DNS label of at most 40 characters; part of runner names and logs.
        max: Most runners at a time, in this process.
        min: Runners that boot at once, in the background, and stay. 0 in a runner.
        max_concurrency: Calls a runner serves at a time, each in a process of its own.
        single_use: A runner ends with its first call.
        timeout: Seconds a call may run; None for no limit.
        queue_timeout: Seconds a call may wait for a slot; None for no limit. A pool
            whose runners do not boot fails its callers all the same.
        boot_timeout: Seconds a runner may take to be ready, and then its initializer.
        scale_up_timeout: Seconds for which that clock may stand still besides, while
            the cluster adds a node or pulls an image; 0 for none.
        shutdown_timeout: Seconds that calls may take to finish when the interpreter
            exits, or a runner is told to end.
        idle_shutdown_after: Seconds without a call after which a runner beyond min
            ends, and a boot that nobody waits for any more is given up; None for never.
        min_idle_shutdown_after: Seconds without any call after which all runners end,
            to come back with the next call; None for never.
        max_queue: Most calls that wait; others get `PoolSaturated`.
        buffer: Idle slots kept ready beyond the calls that run, while some do.
        placement: "least_loaded" spreads calls over runners; "pack" fills one before
            the next, so that others can go.
        max_lifetime: Seconds of service after which a runner takes no more calls, and
            is replaced; those that run there may finish. Lives are up to a tenth
            shorter, each runner's by another amount, so that runners that began
            together are not replaced together. Where the pool is not there to do so,
            the cluster ends a pod that is older by more than the clocks of boot and
            shutdown.
        max_tasks_per_child: Calls after which a slot's process is renewed.
        retries: Tries after the first one, or a `Retry`. A number alone counts for
            calls that are known not to have started.
        results: "data" decodes what runners send without executing anything;
            "pickle" lets a runner execute code in this process.
        result_types: Dataclasses, enums and exceptions that results may hold;
            exceptions among them are raised as themselves, not as `RemoteError`.
        max_result: Largest result in bytes, large buffers aside.
        max_payload: Largest request in bytes.
        preload: Modules a runner imports before it is ready.
        on_boot: Called without arguments once in each runner after that, before the
            processes of its slots are forked; when it raises, the boot has failed.
        initializer: Called in each slot's process before its first call; when it
            raises, the boot has failed.
        initargs: Its arguments.
        on_event: Called with each `flame_backend.events.Event`, in a thread of its own.
        nested: "error": a runner that uses a pool of its own gets `NestedCallError`.
        backend: Where runners come from; None chooses by $FLAME_BACKEND, else pods
            inside a pod, else local processes.

    Raises:
        ConfigurationError: An option breaks its rule.
        NotSerializable: The initializer cannot be sent.
    """

    def __init__(  # noqa: PLR0913 - one argument for each option
        self,
        name: str,
        *,
        max: int,  # noqa: A002 - FLAME's word
        min: int = 0,  # noqa: A002 - as above
        max_concurrency: int = 1,
        single_use: bool = False,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        boot_timeout: float = BOOT_TIMEOUT,
        scale_up_timeout: float = SCALE_UP_TIMEOUT,
        shutdown_timeout: float = SHUTDOWN_TIMEOUT,
        idle_shutdown_after: float | None = IDLE_SHUTDOWN_AFTER,
        min_idle_shutdown_after: float | None = None,
        max_queue: int | None = None,
        buffer: int = 0,
        placement: Literal["least_loaded", "pack"] = "least_loaded",
        max_lifetime: float | None = None,
        max_tasks_per_child: int | None = None,
        retries: int | Retry = 0,
        results: Literal["data", "pickle"] = "data",
        result_types: Sequence[type] = (),
        max_result: int = MAX_RESULT,
        max_payload: int = MAX_PAYLOAD,
        preload: Sequence[str] = (),
        on_boot: Callable[[], object] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        on_event: Callable[[Event], object] | None = None,
        nested: Literal["error"] = "error",
        backend: Backend | None = None,
    ) -> None:
        spec = pool_spec(
            name,
            max_concurrency=max_concurrency,
            boot_timeout=boot_timeout,
            scale_up_timeout=scale_up_timeout,
            max_lifetime=max_lifetime,
            shutdown_timeout=shutdown_timeout,
            results=results,
            result_types=result_types,
            max_result=max_result,
            max_payload=max_payload,
            preload=preload,
            on_boot=on_boot,
        )
        self._sizing = pool_sizing(
            spec,
            max_runners=max,
            min_runners=min,
            buffer=buffer,
            idle_shutdown_after=idle_shutdown_after,
            min_idle_shutdown_after=min_idle_shutdown_after,
            single_use=single_use,
            max_queue=max_queue,
            placement=placement,
            max_tasks_per_child=max_tasks_per_child,
        )
        if nested != "error":
            raise ConfigurationError("nested", 'must be "error"')
        if on_event is not None and not callable(on_event):
            raise ConfigurationError("on_event", "a function of one event")
        options = CallOptions(
            timeout=limit_seconds("timeout", timeout),
            queue_timeout=limit_seconds("queue_timeout", queue_timeout),
            retry=retry_policy(retries),
        )
        super().__init__(Home(spec), options)
        self._on_event = on_event
        self._initializer = initializer_request(initializer, initargs, spec)
        self._backend = chosen_backend(backend)
        if parent() is not None:
            # A runner has the app's modules, and must not boot what they ask for.
            self._sizing = replace(self._sizing, min=0)
        self._begin()
        _pools.add(self)
        if self._sizing.min:
            self._home.engine.start()

    def _begin(self) -> None:
        """Be a pool that has not started."""
        home = self._home
        home.engine = Engine(
            home.spec, self._sizing, self._backend, self._on_event, self._initializer
        )
        self._collected = weakref.finalize(self, _finish_soon, home.engine)
        # At exit, `_end_all` sees to it, in its own order.
        self._collected.atexit = False

    @property
    def _max_workers(self) -> int:
        """How many calls may run at a time; dask and others ask executors for it."""
        return self._home.engine.max_slots

    def __repr__(self) -> str:
        home = self._home
        runners = home.engine.max_slots // home.spec.slots
        few = "1 runner" if runners == 1 else f"{runners} runners"
        kind = type(self._backend).__name__
        return f"<flame_backend.Pool {home.spec.name}, at most {few}, {kind}>"

    # ------------------------------------------------------------------ the pool

    def options(
        self,
        *,
        timeout: float | Literal["pool"] | None = "pool",
        queue_timeout: float | Literal["pool"] | None = "pool",
        link: bool = True,
        retries: int | Retry | Literal["pool"] = "pool",
    ) -> View:
        """Return the pool with other options for the calls made through it.

        Args:
            timeout: Seconds a call may run.
            queue_timeout: Seconds it may wait for a slot.
            link: The call ends when its caller leaves it while it runs: by Ctrl-C in
                `call`, with its task, by `future.cancel()`, by leaving `map`. False
                lets it finish then; the end of the pool, or of this process, is the
                end of every call (docs/decisions/0008-links.md).
            retries: As for the pool.
        """
        own = self._options
        if timeout != "pool":
            own = replace(own, timeout=limit_seconds("timeout", timeout))
        if queue_timeout != "pool":
            seconds = limit_seconds("queue_timeout", queue_timeout)
            own = replace(own, queue_timeout=seconds)
        if retries != "pool":
            own = replace(own, retry=retry_policy(retries))
        return View(self, self._home, replace(own, link=link))

    def status(self) -> PoolStatus:
        """Return what there is: runners, calls, failures; prints as a table."""
        return self._home.engine.status()

    def resize(self, *, min: int | None = None, max: int | None = None) -> None:  # noqa: A002 - FLAME's words
        """Change the smallest and largest number of runners; None keeps one.

        Runners too many end with their calls; missing ones boot in the background.

        Raises:
            ConfigurationError: The bounds contradict each other.
        """
        self._home.engine.resize(min, max)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until min runners are ready; with min=0, until one is.

        Raises:
            BootError: They cannot be had; says why.
            BootTimeout: They are not ready in this time.
            PoolClosed: The pool was shut down.
        """
        self._home.engine.wait_ready(limit_seconds("timeout", timeout))

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more calls, let those that are there finish, and end the pool.

        Args:
            timeout: Seconds for that; None for shutdown_timeout. Calls that take
                longer are cancelled.

        Returns:
            True when every call finished, and every placement when it was asked to.
        """
        limit = limit_seconds("timeout", timeout)
        return self._end(self._home.spec.shutdown_timeout if limit is None else limit)

    # ------------------------------------------------------------------ end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - signature of the base
        """Take no more calls; end all runners when the calls are done.

        Args:
            wait: Return when that has happened. False returns at once, and the rest
                happens beside the program; at its exit within shutdown_timeout. In a
                callback of the pool's own it never waits.
            cancel_futures: Cancel what was submitted and has not started.
        """
        self._home.engine.refuse(cancel_futures=cancel_futures)
        if wait:
            self._collected.detach()
            self._home.engine.finish(None)
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

    def _end(self, seconds: float) -> bool:
        self._collected.detach()
        self._home.engine.refuse(cancel_futures=seconds <= 0)
        return self._home.engine.finish(seconds)

    def _after_fork(self) -> None:
        self._collected.detach()
        self._home.engine.after_fork()
        # Another process' pool: its runners must not be taken for the parent's.
        home = self._home
        home.spec = replace(home.spec, instance=fresh_instance())
        self._begin()


class View(Forms):
    """A pool with other options; made by `Pool.options`."""

    def __init__(self, pool: Pool, home: Home, options: CallOptions) -> None:
        super().__init__(home, options)
        # A pool that nobody holds is shut down.
        self._pool = pool

    def __repr__(self) -> str:
        return f"<View of {self._pool!r}>"


def _finish_soon(engine: Engine) -> None:
    """Let a pool's calls finish and end it, beside the program."""
    engine.refuse(cancel_futures=False)
    engine.finish_beside(None)


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
