"""Pace: a burst goes at once, a storm at the rate, refusals come apart."""

from __future__ import annotations

import itertools

import pytest

from flame_backend.backends.kubernetes.pace import Pace, pause_before


def test_burst_goes_at_once_and_a_storm_at_the_rate() -> None:
    """Two hundred runners asked for in one moment: thirty, then twenty a second."""
    pace = Pace(100.0, rate=20, burst=30)
    turns = [pace.turn(100.0) for _ in range(200)]
    assert [0.0] * 30 == turns[:30]
    assert 170 / 20 == pytest.approx(turns[-1])
    gaps = [later - turn for turn, later in itertools.pairwise(turns[30:])]
    assert gaps == pytest.approx([1 / 20] * len(gaps))


def test_bucket_fills_again() -> None:
    """After a pause there is a burst once more, and no larger one."""
    pace = Pace(0.0, rate=10, burst=5)
    for _ in range(5):
        pace.turn(0.0)
    assert pace.turn(0.0) > 0
    assert [pace.turn(1000.0) for _ in range(5)] == pytest.approx([0.0] * 5)
    assert pace.turn(1000.0) == pytest.approx(0.1)


def test_pause_grows_is_bounded_and_heeds_the_server() -> None:
    """Half to all of 1, 2, 4, 8, 10 s, on top of what the server asked for."""
    longest = [pause_before(attempt, None, 1.0) for attempt in range(1, 7)]
    assert [1, 2, 4, 8, 10, 10] == longest
    assert 0.5 == pause_before(1, None, 0.0)
    assert 31 == pause_before(1, 30.0, 1.0)
