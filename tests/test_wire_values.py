"""The data codec: exact round trips, and bombs that must cost their sender only."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
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
from flame_backend.wire.tags import CHUNKED, COUNT, EXT_DEPTH, LINK, Tag
from flame_backend.wire.values import encode


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


def ext(tag: int, data: bytes) -> ormsgpack.Ext:
    """Build an extension as a hostile runner would."""
    return ormsgpack.Ext(tag, data)


def link(tag: int, number: int = 0) -> ormsgpack.Ext:
    """Build an extension that refers to a document."""
    return ormsgpack.Ext(tag, LINK.pack(number))


def chunked(documents: list[bytes], last: object) -> bytes:
    """Build a body of several documents."""
    lengths = b"".join(LINK.pack(len(part)) for part in documents)
    head = COUNT.pack(CHUNKED, len(documents))
    return head + lengths + b"".join(documents) + ormsgpack.packb(last)


def linked(tag: int, content: object) -> bytes:
    """Build a body that is one extension with this content."""
    return chunked([ormsgpack.packb(content)], link(tag))


def nested(depth: int, innermost: object) -> bytes:
    """Build tuples inside tuples."""
    documents = [ormsgpack.packb(innermost)]
    documents += [ormsgpack.packb([link(Tag.TUPLE, n)]) for n in range(depth - 1)]
    return chunked(documents, link(Tag.TUPLE, depth - 1))


HOSTILE: dict[str, bytes] = {
    "object dtype": linked(Tag.ARRAY, ["|O", [1], "C", b"x" * 8]),
    "text dtype": linked(Tag.ARRAY, ["<U1", [1], "C", b"\xff" * 4]),
    "dtype of a list": linked(Tag.ARRAY, [["<i8"], [1], "C", b"x" * 8]),
    "shape beyond data": linked(Tag.ARRAY, ["<i8", [9], "C", b"x" * 8]),
    "shape short of data": linked(Tag.ARRAY, ["|i1", [3], "C", b"x" * 8]),
    "negative shape": linked(Tag.ARRAY, ["<i8", [-1], "C", b"x" * 8]),
    "shape that overflows": linked(Tag.ARRAY, ["|i1", [2**62, 4, 0], "C", b""]),
    "order of a list": linked(Tag.ARRAY, ["<i8", [1], ["C"], b"x" * 8]),
    "33 dimensions": linked(Tag.ARRAY, ["|i1", [1] * 33, "C", b"x"]),
    "bool that is neither": linked(Tag.ARRAY, ["|b1", [1], "C", b"\x02"]),
    "scalar of two": linked(Tag.SCALAR, ["|i1", b"xx"]),
    "unhashable member": linked(Tag.SET, [[1]]),
    "pairs of one": linked(Tag.PAIRS, [[1, 2], [3]]),
    "int of 5 kilobytes": ormsgpack.packb(ext(Tag.BIG_INT, b"x" * 5000)),
    "decimal of 5 kilobytes": ormsgpack.packb(ext(Tag.DECIMAL, b"1" * 5000)),
    "zone that climbs": ormsgpack.packb(
        ext(Tag.DATETIME, b"2020-01-01T00:00:00 0 ../../../etc/passwd")
    ),
    "zone of a module": ormsgpack.packb(
        ext(Tag.DATETIME, b"2020-01-01T00:00:00 0 a.b/c")
    ),
    "unknown tag": ormsgpack.packb(ext(99, b"")),
    "unknown tag of a document": linked(99, []),
    "unknown type": linked(Tag.DATACLASS, [7, {}]),
    "negative type": linked(Tag.DATACLASS, [-1, {}]),
    "missing field": linked(Tag.DATACLASS, [0, {"name": "x"}]),
    "more fields": linked(
        Tag.DATACLASS, [0, {"name": "x", "value": 1, "__class__": 2}]
    ),
    "no such member": linked(Tag.ENUM, [1, "BLUE"]),
    "no such segment": ormsgpack.packb(link(Tag.SEGMENT, 3)),
    "no such document": ormsgpack.packb(link(Tag.TUPLE)),
    "document that is no list": linked(Tag.TUPLE, 1),
    "document twice": chunked([b"\x90"], [link(Tag.TUPLE), link(Tag.TUPLE)]),
    "document never": chunked([b"\x90"], 1),
    "document of itself": chunked([ormsgpack.packb([link(Tag.TUPLE)])], 1),
    "documents missing": COUNT.pack(CHUNKED, 1000) + b"\x90",
    "document beyond the body": COUNT.pack(CHUNKED, 1) + LINK.pack(99) + b"\x90\x90",
    "deep extensions": nested(EXT_DEPTH + 1, [1]),
    "deep arrays": b"\x91" * 100_000 + b"\xc0",
    "lying length": b"\xdd\xff\xff\xff\xff",
    "nothing": b"",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_body_is_refused(body: bytes) -> None:
    """MalformedFrame is all that comes of it."""
    with pytest.raises(MalformedFrame):
        decode(body, [], result_types=TYPES)


def test_segment_is_referred_to_exactly_once() -> None:
    """Twice would multiply memory, never hides bytes."""
    once = link(Tag.SEGMENT, 0)
    assert [b"x"] == decode(ormsgpack.packb([once]), [b"x"])
    with pytest.raises(MalformedFrame, match="twice"):
        decode(ormsgpack.packb([once, once]), [b"x"])
    with pytest.raises(MalformedFrame, match="no value refers"):
        decode(ormsgpack.packb(1), [b"x"])


def test_document_is_referred_to_exactly_once() -> None:
    """Twice would multiply memory, also when another one is left out."""
    once = link(Tag.TUPLE)
    with pytest.raises(MalformedFrame, match="twice"):
        decode(chunked([b"\x90", b"\x90"], [once, once]))


@pytest.mark.parametrize("zone", ["../../etc/passwd", "a.b/c", "/etc/passwd", "x y"])
def test_time_zone_from_the_wire_is_never_a_path_nor_a_module(zone: str) -> None:
    """It is refused before `zoneinfo` looks for it."""
    body = ormsgpack.packb(ext(Tag.DATETIME, f"2020-01-01 0 {zone}".encode()))
    with pytest.raises(MalformedFrame, match=r"time zone|ValueError") as caught:
        decode(body)
    assert " " in zone or "time zone" in str(caught.value)


def test_tuples_nest_to_the_limit_on_both_ends() -> None:
    """What the runner may send the parent takes; one level more both refuse."""
    value: Any = 1
    for _ in range(EXT_DEPTH):
        value = (value,)
    assert value == there_and_back(value)
    with pytest.raises(ResultNotSerializable, match="in each other"):
        encode((value,))
    with pytest.raises(MalformedFrame, match="nested"):
        decode(nested(EXT_DEPTH + 1, [1]))


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
