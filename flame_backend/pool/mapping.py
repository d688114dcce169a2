"""map: a window of chunks over a lazily pulled input."""

from __future__ import annotations

import concurrent.futures
import itertools
import operator
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from flame_backend.errors import ConfigurationError
from flame_backend.pool.options import limit_seconds
from flame_backend.runner.chunks import run_chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flame_backend.pool.calls import FlameFuture

    Submit = Callable[..., FlameFuture[Any]]


class Mapping:
    """One map: pulls inputs as results are taken.

    Args:
        submit: The pool's.
        fn: What to run.
        rows: Inputs, a tuple of arguments each.
        timeout: Seconds from the moment at which results are asked for.
        chunksize: Inputs sent to a runner at a time.
        buffersize: Chunks in flight.
    """

    def __init__(
        self,
        submit: Submit,
        fn: Callable[..., Any],
        rows: Iterator[tuple[Any, ...]],
        *,
        timeout: float | None,
        chunksize: int,
        buffersize: int,
    ) -> None:
        self._submit = submit
        self._fn = fn
        self._rows = rows
        self._timeout = timeout
        self._chunksize = chunksize
        self._size = buffersize
        self._window: deque[FlameFuture[Any]] = deque()
        # As every executor's map: work starts now, not with the first result.
        self._fill()

    def results(self, *, ordered: bool, return_exceptions: bool) -> Iterator[Any]:
        """Return the results; the timeout counts from now."""
        limit = self._timeout
        deadline = None if limit is None else time.monotonic() + limit
        return self._results(
            deadline, ordered=ordered, return_exceptions=return_exceptions
        )

    def _fill(self) -> None:
        """Submit chunks until the window is full or the input is at its end."""
        while len(self._window) < self._size:
            chunk = list(itertools.islice(self._rows, self._chunksize))
            if not chunk:
                return
            if self._chunksize == 1:
                self._window.append(self._submit(self._fn, *chunk[0]))
            else:
                self._window.append(self._submit(run_chunk, self._fn, chunk))

    def _results(
        self, deadline: float | None, *, ordered: bool, return_exceptions: bool
    ) -> Iterator[Any]:
        try:
            while self._window:
                future = self._next(deadline, ordered=ordered)
                error = future.exception()
                if error is None:
                    result = future.result()
                    results = [result] if self._chunksize == 1 else result[::-1]
                    del result
                elif return_exceptions and isinstance(error, Exception):
                    results = [error]
                else:
                    raise error
                self._fill()
                # Nothing here keeps a result alive while the caller has it.
                del future, error
                while results:
                    yield results.pop()
        finally:
            for future in self._window:
                future.cancel()

    def _next(self, deadline: float | None, *, ordered: bool) -> FlameFuture[Any]:
        """Take the next future out of the window, when it is done.

        Raises:
            TimeoutError: The deadline passed.
        """
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if ordered:
            try:
                self._window[0].exception(left)
            except TimeoutError:
                raise self._late() from None
            return self._window.popleft()
        done, _ = concurrent.futures.wait(
            self._window, left, concurrent.futures.FIRST_COMPLETED
        )
        if not done:
            raise self._late()
        found = next(future for future in self._window if future in done)
        self._window.remove(found)
        return found

    def _late(self) -> TimeoutError:
        return TimeoutError(f"map: not all results came within {self._timeout:g} s")


def mapped(
    submit: Submit,
    fn: Callable[..., Any],
    rows: Iterator[tuple[Any, ...]],
    *,
    timeout: float | None,
    chunksize: int,
    buffersize: int,
    ordered: bool,
    return_exceptions: bool,
) -> Iterator[Any]:
    """Start a map and return its results.

    Raises:
        ConfigurationError: Names the option and its rule.
    """
    chunksize = _whole("chunksize", chunksize)
    buffersize = _whole("buffersize", buffersize)
    # As for every executor's map, a time that is over already is no mistake.
    if not (isinstance(timeout, int | float) and timeout <= 0):
        limit_seconds("timeout", timeout)
    if return_exceptions and chunksize > 1:
        reason = "with return_exceptions each input is a chunk of its own"
        raise ConfigurationError("chunksize", reason)
    mapping = Mapping(
        submit, fn, rows, timeout=timeout, chunksize=chunksize, buffersize=buffersize
    )
    return mapping.results(ordered=ordered, return_exceptions=return_exceptions)


def _whole(option: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number <= sys.maxsize:
        raise ConfigurationError(option, "a whole number, at least 1")
    return number
