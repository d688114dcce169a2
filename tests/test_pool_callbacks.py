"""What the app's callbacks may do to a pool: raise, exit, and end it."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.events import Event

BACKENDS = {"local": flame.LocalBackend, "inline": flame.InlineBackend}


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Any:
    return BACKENDS[request.param]()


def report(seconds: float = 0.5) -> str:
    time.sleep(seconds)
    flame.progress(1)
    return "done"


def leave(*_: object) -> None:
    sys.exit(3)


def ends(step: Callable[[], object], seconds: float = 4.0) -> bool:
    """Tell whether something returns, in a thread that may hang."""
    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_done_callback_that_exits_costs_no_thread(backend: Any) -> None:
    """More of them than the pool has threads, and calls are still seen to."""
    with flame.Pool("callbacks", max=1, backend=backend) as pool:
        for number in range(5):
            future = pool.submit(abs, -number)
            future.add_done_callback(leave)
            assert number == future.result(10)


def test_on_event_that_exits_is_told_of_the_next_event(backend: Any) -> None:
    """Nothing but that event is over."""
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        sys.exit(3)

    with flame.Pool("callbacks", max=1, backend=backend, on_event=on_event) as pool:
        pool.call(abs, -1)
    assert len(events) > 1


def test_progress_callback_that_exits_leaves_the_call_alone() -> None:
    """As one that raises anything else."""
    with flame.Pool("callbacks", max=1, backend=flame.LocalBackend()) as pool:
        future = pool.submit(report)
        future.add_progress_callback(leave)
        assert "done" == future.result(20)


@pytest.mark.parametrize("calls", [1, 2])
def test_done_callback_may_end_the_pool_while_others_do(
    backend: Any, calls: int
) -> None:
    """Neither waits for the other for ever."""
    pool = flame.Pool("callbacks", max=2, backend=backend)
    for _ in range(calls):
        future = pool.submit(time.sleep, 0.2)
        future.add_done_callback(lambda _: pool.shutdown())
    assert ends(pool.shutdown)
    with pytest.raises(flame.PoolClosed):
        pool.call(abs, -1)


def test_progress_callback_may_end_the_pool() -> None:
    """Its own call finishes before that."""
    pool = flame.Pool("callbacks", max=1, backend=flame.LocalBackend())
    future = pool.submit(report)
    future.add_progress_callback(lambda *_: pool.shutdown())
    assert "done" == future.result(20)
    assert ends(pool.shutdown)


def test_on_event_may_end_the_pool_while_others_do() -> None:
    """Nobody waits until the last events are given up."""

    def on_event(_: Event) -> None:
        # Until the pool's own end waits for this event.
        time.sleep(0.2)
        pool.shutdown()

    backend = flame.InlineBackend()
    pool = flame.Pool("callbacks", max=1, backend=backend, on_event=on_event)
    pool.call(abs, -1)
    assert ends(pool.shutdown)
