"""Laws of the data codec: what goes in comes out, what was altered is refused."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
import zoneinfo
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flame_backend.errors import FlameError, MalformedFrame
from flame_backend.wire.decoding import decode
from flame_backend.wire.exceptions import decode_exception, encode_exception
from flame_backend.wire.values import encode


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Frozen, with slots."""

    name: str
    value: object


@dataclasses.dataclass
class Box:
    """Mutable, with a field that its constructor does not take."""

    inner: object
    count: int = dataclasses.field(default=0, init=False)


class Colour(enum.Enum):
    """Members by name."""

    RED = "r"
    GREEN = ()


class Level(enum.IntEnum):
    """Members that are ints."""

    LOW = 1
    HIGH = 2**70


class Mode(enum.Flag):
    """Members that combine."""

    READ = 1
    WRITE = 2
    BOTH = 3


class Point(NamedTuple):
    """A named tuple."""

    x: object
    y: object


TYPES = (Row, Box, Colour, Level, Mode, Point, ValueError)

zones = st.sampled_from(
    [None, dt.UTC, dt.timezone(dt.timedelta(minutes=-90)),
     *map(zoneinfo.ZoneInfo, ("Europe/Berlin", "UTC", "America/Port-au-Prince"))]
)  # fmt: skip
dtypes = st.sampled_from(
    ["?", "i1", "u1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8", "<c8", "<c16",
     "<M8[D]", "<M8[ns]", "<m8[s]", "<m8", "S1", "S7"]
)  # fmt: skip
surrogates = st.text(st.characters(categories=["Cs", "Lu", "Lo"]), max_size=5)

keys = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(max_size=5) | st.binary(max_size=5) | st.dates() | st.uuids() | surrogates
    | st.sampled_from([*Colour, *Level, *Mode, Mode(0)])
    | st.builds(pow, st.sampled_from([2, -3]), st.integers(60, 2500))
    | st.decimals(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.datetimes(timezones=zones) | st.times() | st.timedeltas()
    | st.builds(range, st.integers(), st.integers(), st.integers(1, 9))
    | surrogates.filter(lambda text: "\0" not in text).map(Path)
)  # fmt: skip


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Return an array of any carried kind, in any memory order."""
    dtype = np.dtype(draw(dtypes))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = math.prod(shape) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype.kind == "b":
        data = bytes(octet & 1 for octet in data)
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    view = draw(st.sampled_from(["C", "F", "transposed", "strided", "scalar"]))
    if view == "scalar" and array.size:
        return array.ravel()[0]
    if view == "strided" and array.ndim:
        return array[..., ::2]
    if view in {"C", "F"}:
        return np.array(array, order=view)
    return array.T


hashable = st.recursive(
    keys,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(inner, max_size=3)
        | st.builds(Point, inner, inner)
        | st.builds(Row, st.text(max_size=3), inner)
    ),
    max_leaves=4,
)
values = st.recursive(
    hashable | arrays() | st.just(b"z" * 70_000),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(hashable, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.builds(Row, st.text(max_size=3), inner)
        | st.builds(Box, inner)
        | st.builds(Point, inner, inner)
        | st.lists(inner, max_size=2).map(lambda args: ValueError(*args))
    ),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    """Tell whether two values are equal, of equal types all the way down."""
    kind = type(left)
    if kind is not type(right):
        return False
    if kind in {list, tuple, Point}:
        return len(left) == len(right) and all(map(same, left, right))
    if kind is dict:
        pairs = zip(left.items(), right.items(), strict=True)
        return len(left) == len(right) and all(same(a, b) for a, b in pairs)
    if kind in {set, frozenset}:
        kinds = [sorted(type(item).__name__ for item in side) for side in (left, right)]
        return bool(left == right) and kinds[0] == kinds[1]
    if kind in {Row, Box}:
        names = [field.name for field in dataclasses.fields(kind)]
        return all(same(getattr(left, name), getattr(right, name)) for name in names)
    if kind is ValueError:
        return same(left.args, right.args)
    if isinstance(left, np.ndarray | np.generic):
        alike = (left.dtype, left.shape) == (right.dtype, right.shape)
        return alike and left.tobytes() == right.tobytes()
    return repr(left) == repr(right)


@given(values)
def test_every_value_of_the_grammar_comes_back(value: Any) -> None:
    """Equal, of equal types, dicts in their order, arrays writable."""
    sent = encode(value, result_types=TYPES)
    segments = [bytes(part) for part in sent.segments]
    found = decode(sent.body, segments, result_types=TYPES)
    assert same(value, found)
    if type(found) is np.ndarray:
        assert found.flags.writeable


@given(st.binary(max_size=300), st.lists(st.binary(max_size=8), max_size=2))
def test_any_bytes_decode_or_are_refused(body: bytes, segments: list[bytes]) -> None:
    """MalformedFrame is the only error, whatever a runner sends."""
    for start in (b"", b"\xc1\0\0\0\1\0\0\0\4"):
        for read in (decode, decode_exception):
            try:
                read(start + body, segments, result_types=TYPES)
            except MalformedFrame:
                continue


@given(values, st.data())
def test_altered_value_decodes_or_is_refused(value: Any, data: st.DataObject) -> None:
    """One octet changed, lost or added, anywhere."""
    sent = encode(value, result_types=TYPES)
    segments = [bytes(part) for part in sent.segments]
    body = bytearray(sent.body)
    place = data.draw(st.integers(0, len(body) - 1))
    octets = data.draw(st.binary(max_size=2))
    body[place : place + 1] = octets
    try:
        decode(bytes(body), segments, result_types=TYPES)
    except MalformedFrame:
        return


@given(st.lists(values, max_size=2), st.data())
def test_altered_exception_decodes_or_is_refused(
    args: list[Any], data: st.DataObject
) -> None:
    """What comes out is an Exception that can be shown, whatever was altered."""
    kind = data.draw(st.sampled_from([ValueError, OSError, AttributeError, KeyError]))
    sent = encode_exception(kind(*args), result_types=TYPES)
    segments = [bytes(part) for part in sent.segments]
    body = bytearray(sent.body)
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode_exception(bytes(body), segments, result_types=TYPES)
    except MalformedFrame:
        return
    assert isinstance(found, Exception)
    assert not isinstance(found, StopIteration)
    assert isinstance(found.__cause__ or found, FlameError)
