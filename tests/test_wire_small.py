"""Small values: what is packed without the codec is what the codec reads."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame_backend.wire.decoding import decode
from flame_backend.wire.small import TEXT_BYTES, small_body

VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
)


@given(VALUES)
def test_what_is_packed_comes_back_as_itself(value: Any) -> None:
    """Value and type; what is not packed is left to the codec."""
    body = small_body(value)
    if body is None:
        assert type(value) in {int, str}
        return
    found = decode(body)
    assert (type(value), value) == (type(found), found)


def test_not_a_number_comes_back() -> None:
    """Which equals nothing, itself included."""
    body = small_body(math.nan)
    assert body is not None
    assert math.isnan(decode(body))


@pytest.mark.parametrize(
    "value",
    [2**63, -(2**63) - 1, "x" * (TEXT_BYTES + 1), "€" * 100, "\udc80", b"", [], (), 1j],
    ids=repr,
)
def test_everything_else_is_left_to_the_codec(value: object) -> None:
    """Large, odd, or of another type."""
    assert small_body(value) is None


class Number(int):
    """A subclass."""


def test_subclasses_are_left_to_the_codec() -> None:
    """Which refuses them by name."""
    assert small_body(Number(1)) is None
