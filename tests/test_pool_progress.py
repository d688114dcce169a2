"""Progress of a call, on its way to the future's callbacks."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def pool() -> Iterator[flame.Pool]:
    """Lend a pool to all tests of this module."""
    with flame.Pool("progress", max=1, backend=flame.LocalBackend()) as made:
        yield made


def count(steps: int) -> str:
    time.sleep(0.5)  # until the caller has added its callback
    for step in range(steps):
        flame.progress(step / steps, f"step {step}")
    return "done"


def report_from_elsewhere() -> int:
    """Report in a thread that goes on after the call, and in a forked child."""

    def go_on() -> None:
        for step in range(2000):
            flame.progress(step)

    threading.Thread(target=go_on).start()
    if os.fork() == 0:
        flame.progress("of a child")
        os._exit(0)
    os.wait()
    return 7


def report(value: Any) -> None:
    time.sleep(0.5)
    flame.progress(value)


def test_callbacks_get_each_report_in_order(pool: flame.Pool) -> None:
    """Value and message, before the result is there."""
    found: list[tuple[float, str | None]] = []
    future = pool.submit(count, 4)
    future.add_progress_callback(lambda value, text: found.append((value, text)))
    assert "done" == future.result(20)
    assert [(step / 4, f"step {step}") for step in range(4)] == found
    assert "done" == pool.call(count, 2), "a plain call just does not hear of it"


def test_report_after_the_end_is_dropped() -> None:
    """The link stays in order, whatever threads a call leaves behind."""
    found: list[Any] = []
    with flame.Pool("left", max=1, backend=flame.LocalBackend()) as pool:
        for _ in range(20):
            future = pool.submit(report_from_elsewhere)
            future.add_progress_callback(lambda value, _: found.append(value))
            assert 7 == future.result(20)
    assert "of a child" not in found


def test_inline_calls_report_when_they_are_over() -> None:
    """Each its own, so that a test without processes sees them; threads don't mix."""
    with flame.Pool("inline", max=4, backend=flame.InlineBackend()) as pool:
        found: dict[int, list[float]] = {steps: [] for steps in (2, 3, 4)}
        calls = {steps: pool.submit(count, steps) for steps in found}
        for steps, call in calls.items():
            call.add_progress_callback(lambda value, _, n=steps: found[n].append(value))
        for steps, call in calls.items():
            assert "done" == call.result(10)
            assert [step / steps for step in range(steps)] == found[steps]
        assert "done" == pool.call(count, 2), "a plain call just does not hear of it"
        with pytest.raises(flame.RemoteError, match="NotSerializable"):
            pool.call(report, threading.Event)


def test_callback_that_raises_is_logged(
    pool: flame.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """And harms neither the call nor the other callbacks."""
    found: list[Any] = []
    future = pool.submit(report, {"rows": 3})
    future.add_progress_callback(lambda *_: 1 / 0)
    future.add_progress_callback(lambda value, _: found.append(value))
    with caplog.at_level(logging.ERROR, "flame_backend.pool"):
        future.result(20)
    assert [{"rows": 3}] == found
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("value", [object(), "x" * 100_000])
def test_report_that_cannot_travel_fails_the_call(pool: flame.Pool, value: Any) -> None:
    """Where it is made, in the function's own code."""
    with pytest.raises(flame.RemoteError, match=r"NotSerializable|TooLarge"):
        pool.call(report, value)
    assert "done" == pool.call(count, 1)


def test_progress_elsewhere_does_nothing() -> None:
    """In the parent, and in a function under test."""
    flame.progress(0.5, "half")
    assert "done" == count(2)
