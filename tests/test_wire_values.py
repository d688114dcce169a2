"""The data codec: exact round trips, and bombs that must cost their sender only."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import tracemalloc
import uuid
import zoneinfo
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame_backend.errors import MalformedFrame, PayloadTooLarge, ResultNotSerializable
from flame_backend.wire.decoding import decode
from flame_backend.wire.values import Tag, encode


@dataclass(frozen=True)
class Row:
    """A dataclass of the app."""

    name: str
    value: object


class Colour(enum.Enum):
    """An enum of the app."""

    RED = 1


TYPES = (Row, Colour)


def there_and_back(value: Any) -> Any:
    """Encode and decode."""
    sent = encode(value, result_types=TYPES)
    segments = [bytes(part) for part in sent.segments]
    return decode(sent.body, segments, result_types=TYPES)


VALUES: list[Any] = [
    None, True, 0, -(2**63), 2**64, 10**40, -(10**40), 1.5, "€", b"x", (), (1, (2,)),
    [1, [2]], {"a": {1, 2}, "b": frozenset({3})}, {(1, 2): {3, 4}, 5: 10**40},
    {uuid.UUID(int=5): dt.date(2020, 1, 1)}, {Colour.RED: 1}, {None: 1, True: 2},
    dt.datetime(2020, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001 - naive on purpose
    dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
    dt.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    dt.time(1, 2), dt.timedelta(-1, 3, 4), decimal.Decimal("1.50"), complex(1, 2),
    Path("/a"), range(1, 10, 2), Row("a", Row("b", None)), Colour.RED,
    [b"z" * 70_000, (b"q" * 80_000,)], {"k": b"z" * 70_000},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_value_comes_back_exactly(value: Any) -> None:
    """Equal, and of the same type."""
    found = there_and_back(value)
    assert value == found
    assert type(value) is type(found)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(100_000).reshape(100, 1000).T,
        np.arange(12.0).reshape(3, 4)[:, ::2],
        np.array([], dtype="f4"),
        np.array(["2020-01-01"], dtype="M8[D]"),
    ],
    ids=["F order", "strided", "empty", "dates"],
)
def test_array_comes_back_exactly(array: Any) -> None:
    """Shape, dtype and elements, in whatever order they lay."""
    found = there_and_back(array)
    assert (array.dtype, array.shape) == (found.dtype, found.shape)
    assert (array == found).all()


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(max_size=9) | st.binary(max_size=9) | st.dates() | st.uuids(),
    lambda inner: st.lists(inner, max_size=4)
    | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(_plain)
def test_any_plain_value_comes_back(value: Any) -> None:
    """A law over generated values."""
    found = there_and_back(value)
    assert value == found
    assert repr(value) == repr(found)


@given(st.binary(max_size=300), st.lists(st.binary(max_size=8), max_size=2))
def test_any_bytes_decode_or_are_refused(body: bytes, segments: list[bytes]) -> None:
    """MalformedFrame is the only error, whatever a runner sends."""
    try:
        decode(body, segments, result_types=TYPES)
    except MalformedFrame:
        return


@given(st.integers(0, 400), st.integers(0, 255))
def test_mutated_value_decodes_or_is_refused(position: int, octet: int) -> None:
    """One octet of a rich value changed."""
    sent = encode([Row("a", {(1, 2): {3}}), np.arange(9), 10**30], result_types=TYPES)
    data = bytearray(sent.body)
    data[position % len(data)] = octet
    segments = [bytes(part) for part in sent.segments]
    try:
        decode(bytes(data), segments, result_types=TYPES)
    except MalformedFrame:
        return


def ext(tag: int, value: Any) -> ormsgpack.Ext:
    """Build an extension as a hostile runner would."""
    data = value if isinstance(value, bytes) else ormsgpack.packb(value)
    return ormsgpack.Ext(tag, data)


def nested(depth: int, payload: bytes) -> bytes:
    """Build extensions inside extensions."""
    body = payload
    for _ in range(depth):
        body = ormsgpack.packb([ext(Tag.TUPLE, body)])
    return body


HOSTILE: dict[str, bytes] = {
    "object dtype": ormsgpack.packb(ext(Tag.ARRAY, ["|O", [1], "C", b"x" * 8])),
    "text dtype": ormsgpack.packb(ext(Tag.ARRAY, ["<U1", [1], "C", b"\xff" * 4])),
    "shape beyond data": ormsgpack.packb(ext(Tag.ARRAY, ["<i8", [9], "C", b"x" * 8])),
    "negative shape": ormsgpack.packb(ext(Tag.ARRAY, ["<i8", [-1], "C", b"x" * 8])),
    "unknown tag": ormsgpack.packb(ext(99, b"")),
    "unknown type": ormsgpack.packb(ext(Tag.DATACLASS, [7, {}])),
    "negative type": ormsgpack.packb(ext(Tag.DATACLASS, [-1, {}])),
    "missing field": ormsgpack.packb(ext(Tag.DATACLASS, [0, {"name": "x"}])),
    "more fields": ormsgpack.packb(
        ext(Tag.DATACLASS, [0, {"name": "x", "value": 1, "__class__": 2}])
    ),
    "no such member": ormsgpack.packb(ext(Tag.ENUM, [1, "BLUE"])),
    "no such segment": ormsgpack.packb(ext(Tag.SEGMENT, 3)),
    "deep extensions": nested(200, ormsgpack.packb(list(range(100)))),
    "deep arrays": b"\x91" * 100_000 + b"\xc0",
    "lying length": b"\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_body_is_refused(body: bytes) -> None:
    """MalformedFrame is all that comes of it."""
    with pytest.raises(MalformedFrame):
        decode(body, [], result_types=TYPES)


def test_segment_is_referred_to_exactly_once() -> None:
    """Twice would multiply memory, never hides bytes."""
    once = ext(Tag.SEGMENT, 0)
    with pytest.raises(MalformedFrame):
        decode(ormsgpack.packb([once, once]), [b"x"])
    with pytest.raises(MalformedFrame):
        decode(ormsgpack.packb(1), [b"x"])


def test_nested_extensions_do_not_multiply_memory() -> None:
    """Bytes inside bytes are budgeted by the frame's own size."""
    body = nested(31, ormsgpack.packb([0] * 200_000))
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrame):
            decode(body)
        assert 40 * len(body) > tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_colliding_set_is_refused_before_it_is_built() -> None:
    """60 000 members of one hash would hold the interpreter for half a minute."""
    prime = 2**61 - 1
    members = [
        ext(Tag.BIG_INT, (prime * number).to_bytes(24, "big", signed=True))
        for number in range(2**40, 2**40 + 20_000)
    ]
    body = ormsgpack.packb(ext(Tag.SET, members))
    with pytest.raises(MalformedFrame, match="collide"):
        decode(body)


def test_refusals_name_the_place_and_the_remedy() -> None:
    """On the runner, where the value still is."""
    with pytest.raises(ResultNotSerializable, match=r"result\[1\]\['x'\].*results="):
        encode([1, {"x": object()}])
    with pytest.raises(ResultNotSerializable, match="result_types"):
        encode(Row("a", 1))
    with pytest.raises(PayloadTooLarge, match="max_result"):
        encode("x" * 100, limit=50)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ResultNotSerializable):
        encode(loop)
