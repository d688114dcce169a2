"""The forms of a call: run it, promise it, map it, await it, or let it go.

Shared by a pool and by its views with other options.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from flame_backend.backends.inline import calling
from flame_backend.errors import NestedCallError, NotSerializable, PayloadTooLarge
from flame_backend.pool.mapping import mapped
from flame_backend.pool.placement import Placement
from flame_backend.runner.parent import parent
from flame_backend.runner.placed import run_placed
from flame_backend.wire.functions import dump_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flame_backend.backends.base import PoolSpec
    from flame_backend.pool.calls import Call, CallOptions, FlameFuture
    from flame_backend.pool.engine import Engine

P = ParamSpec("P")
T = TypeVar("T")


class Home:
    """Where calls go at present.

    Attributes:
        spec: The pool's.
        engine: Its machinery; another one in a forked child.
    """

    __slots__ = ("engine", "spec")

    engine: Engine

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec


class Forms:
    """The call forms.

    Args:
        home: Where calls go.
        options: What holds for each of them.
    """

    def __init__(self, home: Home, options: CallOptions) -> None:
        self._home = home
        self._options = options

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function on a runner and return its result, or raise what it raised.

        Raises:
            CallTimeout, RunnerLost, CallCrashed: It has no result.
            BootError: No runner could be had.
            NotSerializable, ResultNotSerializable, PayloadTooLarge: It cannot travel.
            PoolClosed, PoolSaturated, NestedCallError: The pool does not take it.
        """
        call = self._new_call(fn, args, kwargs)
        engine = self._home.engine
        if not call.link:
            # Run by the pool's threads: this one may leave without ending the call.
            unlinked: T = engine.submit(call).result()
            return unlinked
        result: T = engine.run(call)
        return result

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> FlameFuture[T]:
        """Run a function on a runner; return a future, with `.call` and `.phase`."""
        try:
            call = self._new_call(fn, args, kwargs)
        except (NotSerializable, PayloadTooLarge) as error:
            # As every executor: what is wrong with a call is on its future.
            return self._home.engine.failed(error, self._options)
        return self._home.engine.submit(call)

    async def acall(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function on a runner and await its result; errors as for `call`.

        A task that is cancelled meanwhile cancels the call.
        """
        import asyncio  # whoever awaits has it loaded; other programs do without

        return await asyncio.wrap_future(self.submit(fn, *args, **kwargs))

    def cast(
        self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Run a function on a runner and forget it; failures are logged.

        `on_event` hears of them as well. The end of the pool waits for it as for any
        call.

        Raises:
            PoolClosed: The pool was shut down.
        """
        future = self.submit(fn, *args, **kwargs)
        future.add_done_callback(lambda _: self._log_failure(future))

    def place(
        self, target: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> Placement:
        """Start a long-lived process on a runner; return what controls it.

        The target runs until it returns, is stopped, or the pool ends, and holds one
        slot meanwhile: count it into max and max_concurrency. What it returns is
        dropped; what it raises, `Placement.join` tells. The pool's `timeout` and
        `retries` are for calls, `queue_timeout` is for its beginning as well. At its
        end it gets SIGTERM, which it may handle.

        Raises:
            ConfigurationError: The backend has no processes (InlineBackend).
            NotSerializable, PayloadTooLarge: It cannot travel.
            PoolClosed, NestedCallError: The pool does not take it.
        """
        home = self._home
        # For what cannot be sent, in its own terms.
        self._request(target, args, kwargs)
        request = self._request(run_placed, (target, args, kwargs), {})
        call = home.engine.new_placement(request, self._options)
        future = home.engine.place(call)
        return Placement(call, future, home.engine.placements.stop, self)

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
        size = 2 * self._home.engine.max_slots if buffersize is None else buffersize
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

    def _new_call(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call:
        request = self._request(fn, args, kwargs)
        return self._home.engine.new_call(request, self._options)

    def _request(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[bytes]:
        if parent() is not None or calling():
            msg = (
                "a runner does not use pools of its own; call from the parent, in a "
                'module that runners import below `if __name__ == "__main__":`'
            )
            raise NestedCallError(msg)
        return dump_call(fn, args, kwargs, limit=self._home.spec.max_payload)

    def _log_failure(self, future: FlameFuture[Any]) -> None:
        name = self._home.spec.name
        logger = logging.getLogger(f"flame_backend.pool.{name}")
        if future.cancelled():
            logger.warning("cast %d was cancelled", future.call.id)
        elif (error := future.exception()) is not None:
            logger.error("cast %d failed: %s", future.call.id, error, exc_info=error)
