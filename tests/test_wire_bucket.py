"""Buckets of tokens: a burst goes at once, a storm at the rate."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame_backend.wire.bucket import Bucket


def test_burst_goes_at_once_and_a_storm_at_the_rate() -> None:
    """Two hundred runners asked for in one moment: thirty, then twenty a second."""
    bucket = Bucket(30, 20.0)
    turns = [bucket.spend(1, 100.0) for _ in range(200)]
    assert [0.0] * 30 == turns[:30]
    assert 170 / 20 == pytest.approx(turns[-1])
    gaps = [later - turn for turn, later in itertools.pairwise(turns[30:])]
    assert gaps == pytest.approx([1 / 20] * len(gaps))


def test_bucket_fills_again() -> None:
    """After a pause there is a burst once more, and no larger one."""
    bucket = Bucket(5, 10.0)
    for _ in range(5):
        bucket.spend(1, 0.0)
    assert bucket.spend(1, 0.0) > 0
    assert [bucket.spend(1, 1000.0) for _ in range(5)] == pytest.approx([0.0] * 5)
    assert bucket.spend(1, 1000.0) == pytest.approx(0.1)


def test_what_is_not_there_is_not_taken() -> None:
    """A refusal costs nothing: what is smaller may still go."""
    bucket = Bucket(10, 1.0)
    assert not bucket.take(11, 0.0)
    assert bucket.take(6, 0.0)
    assert not bucket.take(6, 0.0)
    assert bucket.take(4, 0.0)
    assert bucket.take(2, 2.0)
    assert not bucket.take(1, 2.5)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 20)), max_size=60),
    st.floats(1, 20),
    st.floats(0.1, 10),
)
def test_no_stretch_of_time_brings_more_than_burst_and_rate(
    steps: list[tuple[float, float]], burst: float, rate: float
) -> None:
    """Whatever is asked for, and when."""
    bucket, now = Bucket(burst, rate), 0.0
    taken: list[tuple[float, float]] = []
    for pause, tokens in steps:
        now += pause
        if bucket.take(tokens, now):
            taken.append((now, tokens))
    for first in range(len(taken)):
        total = 0.0
        for moment, tokens in taken[first:]:
            total += tokens
            assert total <= burst + rate * (moment - taken[first][0]) + 1e-6
