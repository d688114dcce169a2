"""Progress of calls on the wire: data, small, not too often, and never too late."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pool() -> Iterator[flame.Pool]:
    """Lend a pool of one runner."""
    with flame.Pool("progress", max=1, backend=flame.LocalBackend()) as made:
        yield made


def count(steps: int, seconds: float) -> str:
    time.sleep(0.5)  # until the caller has added its callback
    for step in range(steps):
        flame.progress(step, f"step {step}")
        time.sleep(seconds)
    return "done"


def report(value: Any) -> str:
    flame.progress(value)
    return "done"


@pytest.mark.parametrize(
    ("steps", "seconds", "most"), [(20_000, 0.0, 100), (10, 0.0, 10), (40, 0.03, 40)]
)
def test_reports_are_coalesced_and_the_last_one_arrives(
    pool: flame.Pool, steps: int, seconds: float, most: int
) -> None:
    """In order, before the result; all of them when they are few."""
    pool.call(len, "abc")
    seen: list[tuple[Any, str | None]] = []
    future = pool.submit(count, steps, seconds)
    future.add_progress_callback(lambda value, message: seen.append((value, message)))
    assert "done" == future.result(30)
    values = [value for value, _ in seen]
    assert values == sorted(values)
    assert (steps - 1, f"step {steps - 1}") == seen[-1]
    assert len(seen) <= most
    if steps == 10:
        assert list(range(10)) == values


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"x" * 100_000, flame.PayloadTooLarge),
        ("x" * 100_000, flame.PayloadTooLarge),
        (object, flame.ResultNotSerializable),
    ],
)
def test_report_that_cannot_travel_raises_where_it_is_made(
    pool: flame.Pool, value: object, error: type[Exception]
) -> None:
    """In the call itself, by name; the slot lives on."""
    with pytest.raises(flame.RemoteError, match=error.__name__):
        pool.call(report, value)
    assert "done" == pool.call(report, 1)


def test_report_elsewhere_is_dropped() -> None:
    """In a process that is no runner, progress does nothing."""
    flame.progress(0.5, "half")
