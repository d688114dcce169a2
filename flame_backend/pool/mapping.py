"""map: a window of chunks over a lazily pulled input."""

from __future__ import annotations

import concurrent.futures
import itertools
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from flame_backend.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def run_chunk(fn: Callable[..., Any], rows: list[tuple[Any, ...]]) -> list[Any]:
    """Run a function over a few rows; on the runner."""
    return [fn(*row) for row in rows]


def mapped(
    submit: Callable[..., Any],
    fn: Callable[..., Any],
    rows: Iterator[tuple[Any, ...]],
    *,
    timeout: float | None,
    chunksize: int,
    buffersize: int,
    ordered: bool,
    return_exceptions: bool,
) -> Iterator[Any]:
    """Yield results; submit a new chunk whenever one was taken."""
    if chunksize < 1:
        raise ConfigurationError("chunksize", "at least 1")
    if return_exceptions and chunksize > 1:
        reason = "with return_exceptions each input is a chunk of its own"
        raise ConfigurationError("chunksize", reason)
    deadline = None if timeout is None else time.monotonic() + timeout
    chunks = iter(lambda: list(itertools.islice(rows, chunksize)), [])

    def next_future() -> Any:
        chunk = next(chunks, None)
        return None if chunk is None else submit(run_chunk, fn, chunk)

    return _taken(
        next_future,
        buffersize,
        deadline,
        ordered=ordered,
        return_exceptions=return_exceptions,
    )


def _taken(
    next_future: Callable[[], Any],
    size: int,
    deadline: float | None,
    *,
    ordered: bool,
    return_exceptions: bool,
) -> Iterator[Any]:
    window: deque[Any] = deque()
    try:
        while True:
            while len(window) < size and (future := next_future()) is not None:
                window.append(future)
            if not window:
                return
            future = window.popleft() if ordered else _first(window, deadline)
            try:
                yield from future.result(_left(deadline))
            except concurrent.futures.TimeoutError:
                raise
            except Exception as error:
                if not return_exceptions:
                    raise
                yield error
    finally:
        for future in window:
            future.cancel()


def _first(window: deque[Any], deadline: float | None) -> Any:
    done, _ = concurrent.futures.wait(
        window, _left(deadline), concurrent.futures.FIRST_COMPLETED
    )
    if not done:
        raise TimeoutError
    future = next(iter(done))
    window.remove(future)
    return future


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
