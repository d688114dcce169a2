"""The data codec: exact round trips, and bombs that must cost their sender only."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import io
import struct
import uuid
import zoneinfo
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ormsgpack
import pytest

from flame_backend.errors import (
    FlameError,
    MalformedFrame,
    PayloadTooLarge,
    ResultNotSerializable,
)
from flame_backend.wire.decoding import decode
from flame_backend.wire.frames import SEGMENT_COUNT
from flame_backend.wire.tags import CHUNKED, COUNT, EXT_DEPTH, LINK, Tag
from flame_backend.wire.values import encode


@dataclass(frozen=True)
class Row:
    """A dataclass of the app."""

    name: str
    value: object


class Pair(NamedTuple):
    """A named tuple of the app."""

    left: object
    right: object


class Colour(enum.Enum):
    """An enum of the app."""

    RED = 1


TYPES = (Row, Colour, Pair)


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
    Path("/a"), Pair(1, (2,)), {"\udc80": "\udcff"}, range(1, 10, 2),
    Row("a", Row("b", None)), Colour.RED,
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
        np.array(5),
        np.array([True, False]),
        np.array([b"ab", b""]),
    ],
    ids=["F order", "strided", "empty", "dates", "no dimension", "bool", "bytes"],
)
def test_array_comes_back_exactly(array: Any) -> None:
    """Shape, dtype and elements, in whatever order they lay."""
    found = there_and_back(array)
    assert (array.dtype, array.shape) == (found.dtype, found.shape)
    assert (array == found).all()
    assert type(found) is np.ndarray
    assert found.flags.writeable


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
    "order that is the machine's": linked(Tag.ARRAY, ["<i8", [1], "A", b"x" * 8]),
    "33 dimensions": linked(Tag.ARRAY, ["|i1", [1] * 33, "C", b"x"]),
    "bool that is neither": linked(Tag.ARRAY, ["|b1", [1], "C", b"\x02"]),
    "scalar of an array": chunked(
        [
            ormsgpack.packb(["|i1", [1], "C", b"x"]),
            ormsgpack.packb(["|i1", link(Tag.ARRAY)]),
        ],
        link(Tag.SCALAR, 1),
    ),
    "scalar of two": linked(Tag.SCALAR, ["|i1", b"xx"]),
    "bool scalar that is neither": linked(Tag.SCALAR, ["|b1", b"\x02"]),
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
    "negative type that fits": linked(
        Tag.DATACLASS, [-len(TYPES), {"name": "x", "value": 1}]
    ),
    "false as a type": linked(Tag.DATACLASS, [False, {"name": "x", "value": 1}]),
    "missing field": linked(Tag.DATACLASS, [0, {"name": "x"}]),
    "more fields": linked(
        Tag.DATACLASS, [0, {"name": "x", "value": 1, "__class__": 2}]
    ),
    "named tuple with a field less": linked(Tag.NAMED_TUPLE, [2, [1]]),
    "named tuple with a field more": linked(Tag.NAMED_TUPLE, [2, [1, 2, 3]]),
    "named tuple of another class": linked(Tag.NAMED_TUPLE, [0, ["x", 1]]),
    "flags of an enum": linked(Tag.FLAG, [1, Colour.RED.value]),
    "flags of a dataclass": linked(Tag.FLAG, [0, 1]),
    "no such member": linked(Tag.ENUM, [1, "BLUE"]),
    "no such segment": ormsgpack.packb(link(Tag.SEGMENT, 3)),
    "no such document": ormsgpack.packb(link(Tag.TUPLE)),
    "document that is no list": linked(Tag.TUPLE, 1),
    "tuple of a text": linked(Tag.TUPLE, "ab"),
    "set of a dict": linked(Tag.SET, {"a": 1}),
    "pairs of a text": linked(Tag.PAIRS, "ab"),
    "scalar of a dict": linked(Tag.SCALAR, {"|i1": 1, "x": 2}),
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


@pytest.mark.parametrize(
    "kind",
    [StopIteration, StopAsyncIteration, SystemExit, CancelledError, FlameError, Row],
)
def test_exception_that_steers_the_parent_is_not_rebuilt(kind: type) -> None:
    """Also where somebody names it in result_types."""
    body = linked(Tag.EXCEPTION, [0, [], {}])
    with pytest.raises(MalformedFrame, match="not carried"):
        decode(body, result_types=(kind,))
    assert isinstance(decode(body, result_types=(ValueError,)), ValueError)


def test_segment_is_referred_to_exactly_once() -> None:
    """Twice would multiply memory, never hides bytes."""
    once = link(Tag.SEGMENT, 0)
    assert [b"x"] == decode(ormsgpack.packb([once]), [b"x"])
    with pytest.raises(MalformedFrame, match="twice"):
        decode(ormsgpack.packb([once, once]), [b"x"])
    with pytest.raises(MalformedFrame, match="no value refers"):
        decode(ormsgpack.packb(1), [b"x"])


@pytest.mark.parametrize("value", [7, "text", [1, (2,)], {"a": {1: 2}}])
@pytest.mark.parametrize(
    "behind",
    [b"\x00", b"\xc1", b"\xd4\x63\x00", ormsgpack.packb([1] * 100)],
    ids=["a value", "nonsense", "an unknown extension", "a list"],
)
def test_bytes_behind_a_value_are_never_read(value: Any, behind: bytes) -> None:
    """They build nothing, call nothing and change nothing (docs/decisions/0004)."""
    sent = encode(value, result_types=TYPES)
    assert value == decode(sent.body + behind, result_types=TYPES)


def test_document_is_referred_to_exactly_once() -> None:
    """Twice would multiply memory, also when another one is left out."""
    once = link(Tag.TUPLE)
    with pytest.raises(MalformedFrame, match="twice"):
        decode(chunked([b"\x90", b"\x90"], [once, once]))


# Version 1: no transitions, one type of local time, its four letters.
TZIF_UTC = (
    b"TZif" + bytes(16) + struct.pack("!6I", 0, 0, 0, 0, 1, 4) + bytes(6) + b"UTC\0"
)


@pytest.mark.parametrize("zone", ["../../etc/passwd", "a.b/c", "/etc/passwd", "x y"])
def test_time_zone_from_the_wire_is_never_a_path_nor_a_module(zone: str) -> None:
    """It is refused before `zoneinfo` looks for it."""
    body = ormsgpack.packb(ext(Tag.DATETIME, f"2020-01-01 0 {zone}".encode()))
    with pytest.raises(MalformedFrame, match=r"time zone|ValueError") as caught:
        decode(body)
    assert " " in zone or "time zone" in str(caught.value)


def test_every_time_zone_of_the_system_is_carried() -> None:
    """By its name; one made from a file of the app is refused on the runner."""
    for key in sorted(zoneinfo.available_timezones()):
        moment = dt.datetime(2020, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo(key))
        assert repr(moment) == repr(there_and_back(moment))
    own = zoneinfo.ZoneInfo.from_file(io.BytesIO(TZIF_UTC), key="../own")
    with pytest.raises(ResultNotSerializable, match="time zone of type ZoneInfo"):
        encode(dt.datetime(2020, 7, 1, tzinfo=own))


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


@dataclass
class Listed(list):  # type: ignore[type-arg]
    """A dataclass whose base has a layout of its own."""

    name: str


@dataclass
class Guarded:
    """A dataclass one of whose fields is set by code."""

    size: int

    @property  # type: ignore[no-redef]
    def size(self) -> int:
        """Return it."""
        return 1

    @size.setter
    def size(self, value: int) -> None:
        raise AssertionError


@dataclass
class Partial:
    """A dataclass that may lack a field."""

    here: int
    later: int = field(init=False)


class Numbers(np.ndarray):  # type: ignore[type-arg]
    """An array that is more than one."""


Frame = type("DataFrame", (), {"__module__": "pandas.core.frame"})

REFUSED: list[tuple[Any, str, str]] = [
    ([1, {"x": object()}], "result[1]['x'] is of type builtins.object", "plain data"),
    (Row("a", 1), "result is of type tests.", "result_types=(Row, ...)"),
    (Pair(1, 2), "result is of type tests.", "result_types=(Pair, ...)"),
    ([Colour.RED], "result[0] is of type tests.", "result_types=(Colour, ...)"),
    (ValueError(1), "builtins.ValueError", "result_types=(ValueError, ...)"),
    ({"a": (n for n in "")}, "result['a'] is of type builtins.generator", "list(...)"),
    (collections.OrderedDict(), "collections.OrderedDict", "dict(...)"),
    ({1: {2: len}}, "result[1][2] is of type builtins.builtin", "plain data"),
    ({(1, open): 1}, "result key (1, <built-in function open>)[1]", "plain data"),
    ({len}, "result[0] is of type builtins.builtin", "plain data"),
    (np.array(["a"]), "numpy's <U1", "tolist()"),
    (np.array([1, "a"], dtype=object), "numpy's object", "tolist()"),
    (np.zeros(1, dtype="i4,f4"), "numpy's", "tolist()"),
    (np.str_("a"), "numpy.str_", "array of numbers"),
    (np.zeros(2).view(Numbers), "Numbers", "plain data"),
    (np.ma.array([1]), "numpy.ma", "array of numbers"),
    ([Frame()], "result[0] is of type pandas.core.frame.DataFrame", "columns as numpy"),
    (2**5000, "an int of 5001 bits, at most 4096", "plain data"),
    (decimal.Decimal("1" * 5000), "5000 digits, at most 4096", "plain data"),
    (
        dt.datetime(2020, 1, 1, tzinfo=type("Zone", (dt.tzinfo,), {})()),
        "a time zone of type Zone",
        "plain data",
    ),
]


@pytest.mark.parametrize(
    ("value", "what", "remedy"), REFUSED, ids=[row[1] for row in REFUSED]
)
def test_refusal_names_place_type_and_remedy(
    value: Any, what: str, remedy: str
) -> None:
    """On the runner, where the value still is."""
    with pytest.raises(ResultNotSerializable) as caught:
        encode(value)
    assert what in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (Row("a", {"k": [len]}), "result.value['k'][0]"),
        (Pair(1, (len,)), "result.right[0]"),
        (KeyError({"k": len}), "result.args[0]['k']"),
        (Listed("x"), "result is of type"),
        (Partial(1), "result is of type"),
        (StopIteration(1), "mean something to the pool"),
    ],
    ids=["dataclass", "named tuple", "exception", "list", "unset", "steering"],
)
def test_refusal_looks_into_registered_classes(value: Any, what: str) -> None:
    """Down to the attribute."""
    kinds = (Row, Pair, KeyError, Listed, Partial, StopIteration)
    with pytest.raises(ResultNotSerializable) as caught:
        encode(value, result_types=kinds)
    assert what in str(caught.value)


def test_class_that_was_defined_anew_is_not_asked_for_again() -> None:
    """As in a notebook whose cell is run twice: it is in result_types already."""
    older, newer = (
        make_dataclass("Point", ["x"], namespace={"__module__": __name__})
        for _ in range(2)
    )
    with pytest.raises(ResultNotSerializable, match="an older class of that name"):
        encode(newer(1), result_types=(older,))


def test_coroutine_is_told_to_be_run() -> None:
    """Neither more result_types nor a pickle would carry it."""

    async def nothing() -> None: ...

    found = nothing()
    with pytest.raises(ResultNotSerializable, match=r"asyncio\.run\(") as caught:
        encode(found)
    assert "pickle" not in str(caught.value)
    found.close()


def test_field_that_runs_code_is_refused_on_both_ends() -> None:
    """Setting it would call the class's own setter."""
    with pytest.raises(ResultNotSerializable, match="code of its own"):
        encode(object.__new__(Guarded), result_types=(Guarded,))
    with pytest.raises(MalformedFrame):
        decode(linked(Tag.DATACLASS, [0, {"size": 1}]), result_types=(Guarded,))


def test_value_that_contains_itself_is_refused() -> None:
    """Lists, dicts and their mixtures."""
    loop: list[Any] = []
    loop.append({"again": loop})
    with pytest.raises(ResultNotSerializable, match="contains itself"):
        encode(loop)
    deep: Any = None
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ResultNotSerializable, match="nested too deeply"):
        encode(deep)


def test_size_limits_name_their_option() -> None:
    """Of the body alone, and with its segments."""
    with pytest.raises(PayloadTooLarge, match="max_result") as caught:
        encode("x" * 100, limit=50)
    assert 102 == caught.value.size_bytes
    encode(bytes(100_000), limit=50, total_limit=100_100)
    with pytest.raises(PayloadTooLarge):
        encode([bytes(70_000), np.zeros(9000)], limit=5000, total_limit=100_000)


LARGE = b"z" * 70_000


@pytest.mark.parametrize(
    "value",
    [
        LARGE, bytearray(LARGE), memoryview(LARGE), memoryview(LARGE)[::2],
        [{"rows": [{"data": LARGE}]}], (1, ({"data": LARGE},)), Row("a", LARGE),
        {1: {"k": LARGE}}, {"k": (LARGE, LARGE)}, np.zeros(9000), [np.zeros(9000)] * 2,
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_large_buffers_travel_beside_the_body(value: Any) -> None:
    """However deep they stand; bytes are passed on uncopied."""
    sent = encode(value, result_types=TYPES)
    if not (isinstance(value, memoryview) and not value.c_contiguous):
        assert sent.segments
        assert 1000 > len(sent.body)
    found = there_and_back(value)
    if isinstance(value, bytearray | memoryview):
        assert bytes(value) == found
    elif isinstance(value, list) and isinstance(value[0], np.ndarray):
        assert all(map(np.array_equal, value, found))
    else:
        assert (
            np.array_equal(value, found)
            if hasattr(value, "dtype")
            else (value == found)
        )


def test_segments_never_outnumber_a_frame() -> None:
    """What is beyond stays in the body."""
    rows = [np.zeros(8192), b"z" * 65536] * (SEGMENT_COUNT // 2 + 1)
    sent = encode(rows)
    assert SEGMENT_COUNT == len(sent.segments)
    found = decode(sent.body, [bytes(part) for part in sent.segments])
    assert len(rows) == len(found)


def test_bytes_are_passed_on_as_the_object_they_are() -> None:
    """No copy between the function's result and the socket."""
    sent = encode({"a": LARGE, "b": [1]})
    assert sent.segments[0] is LARGE
