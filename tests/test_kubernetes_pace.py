"""Pace: runners that were refused together are asked for again apart."""

from __future__ import annotations

from flame_backend.backends.kubernetes.pace import pause_before


def test_pause_grows_is_bounded_and_heeds_the_server() -> None:
    """Half to all of 1, 2, 4, 8, 10 s, on top of what the server asked for."""
    longest = [pause_before(attempt, None, 1.0) for attempt in range(1, 7)]
    assert [1, 2, 4, 8, 10, 10] == longest
    assert 0.5 == pause_before(1, None, 0.0)
    assert 31 == pause_before(1, 30.0, 1.0)
