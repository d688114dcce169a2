"""Values as data: what a runner may send back, decoded without executing anything.

A runner may be compromised, so its results are no pickles. ormsgpack carries what
MessagePack knows natively; every other type travels as an extension, see `tags`, and
its decoder is a fixed function. No name from the wire is imported: dataclasses, named
tuples, enums and exceptions are an index into the pool's `result_types`.

Types come back exactly as they were sent, with stated exceptions: bytearray and
memoryview come back as bytes, a Path as a Path of this system, and of a dataclass its
fields only.

Encoding is here, on the runner's side; the parent's half is `decoding`, which is total
on any bytes. Memory is bounded by about 90 times the body, whose limit is `max_result`;
nesting is bounded, and sets and keys that collide are refused.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import re
import struct
import sys
import uuid
import zoneinfo
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, NoReturn

import ormsgpack
from ormsgpack import Ext

from flame_backend.errors import PayloadTooLarge, ResultNotSerializable
from flame_backend.wire import rebuilding
from flame_backend.wire.frames import SEGMENT_COUNT
from flame_backend.wire.small import Encoded
from flame_backend.wire.tags import (
    BIG_INT_BYTES,
    CHUNKED,
    COUNT,
    DECIMAL_CHARACTERS,
    DTYPE,
    EXT_DEPTH,
    LINK,
    OUT_OF_BAND_BYTES,
    ZONE,
    Tag,
    container_limit,
    is_crowded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Buffer = bytes | bytearray | memoryview

_OPTIONS: Final = (
    ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)

_LARGE_BYTES: Final = re.compile(rb"\xc6\0[\1-\xff]", re.DOTALL)
"""How bytes of 64 KiB to 16 MiB begin in a body."""


def encode(
    value: object,
    *,
    result_types: Sequence[type] = (),
    limit: int | None = None,
    total_limit: int | None = None,
) -> Encoded:
    """Encode a value.

    Args:
        value: What the function returned.
        result_types: Dataclasses, enums, exceptions that may appear in it.
        limit: Largest body in bytes (max_result).
        total_limit: Largest body and segments together.

    Raises:
        ResultNotSerializable: A type that is not carried; names it, where it sits,
            and the remedy.
        PayloadTooLarge: The body, or all of it, is larger than its limit.
    """
    encoder = Encoder(result_types)
    try:
        body = encoder.whole(value)
    except RecursionError:
        msg = "the result is nested too deeply, or contains itself"
        raise ResultNotSerializable(msg) from None
    except (TypeError, ValueError, AttributeError):
        from flame_backend.wire.complaints import complaint

        raise ResultNotSerializable(complaint(value, encoder)) from None
    if limit is not None and len(body) > limit:
        raise PayloadTooLarge("result", len(body), limit)
    if total_limit is not None and encoder.segments:
        size = len(body) + sum(memoryview(part).nbytes for part in encoder.segments)
        if size > total_limit:
            raise PayloadTooLarge("result", size, total_limit)
    if is_crowded(body):
        msg = (
            f"the result holds more than {container_limit(len(body))} lists, tuples "
            f"and dicts; return numpy arrays, or fewer at a time"
        )
        raise ResultNotSerializable(msg)
    return Encoded(body, encoder.segments)


# What the walk wraps, so that `Encoder.default` is asked for it.


class _Pairs:
    """A dict with keys that are not text."""

    __slots__ = ("value",)

    def __init__(self, value: dict[Any, Any]) -> None:
        self.value = value


class _Text:
    """Text with lone surrogates, as file names have them."""

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value


class _Large:
    """Bytes that travel as a segment."""

    __slots__ = ("value",)

    def __init__(self, value: Buffer) -> None:
        self.value = value


class Encoder:
    """Packs one value; `default` gets every object MessagePack has no type for.

    Attributes:
        segments: Buffers out of band.
        reason: Why the last object was refused, where its type does not say it.
    """

    def __init__(self, result_types: Sequence[type]) -> None:
        self.segments: list[Buffer] = []
        self.reason = ""
        self._documents: list[bytes] = []
        self._index = {kind: number for number, kind in enumerate(result_types)}
        self._depth = 0

    def whole(self, value: object) -> bytes:
        """Return the body of a value."""
        last = self.pack(_lifted(value))
        documents = self._documents
        if not documents:
            return last
        head = COUNT.pack(CHUNKED, len(documents))
        lengths = struct.pack(f"!{len(documents)}I", *map(len, documents))
        return b"".join((head, lengths, *documents, last))

    def pack(self, value: object) -> bytes:
        """Pack one document, and once more through a walk when that is needed."""
        segments, documents = len(self.segments), len(self._documents)
        try:
            data = ormsgpack.packb(value, default=self.default, option=_OPTIONS)
            if len(data) < OUT_OF_BAND_BYTES or not _may_hold_large(data):
                return data
        except ormsgpack.MsgpackEncodeError as error:
            if "Dict key" not in str(error) and "surrogates" not in str(error):
                raise
        del self.segments[segments:]
        del self._documents[documents:]
        return ormsgpack.packb(_walked(value), default=self.default, option=_OPTIONS)

    def is_registered(self, kind: type) -> bool:
        """Tell whether a class is among the pool's result types."""
        return kind in self._index

    def has_namesake(self, kind: type) -> bool:
        """Tell whether another class of its name is among them."""
        name = (kind.__module__, kind.__qualname__)
        return any(name == (one.__module__, one.__qualname__) for one in self._index)

    def default(self, value: object) -> Ext | Buffer:
        """Return the extension for one object, or what is packed in its place.

        Raises:
            TypeError: None exists.
        """
        kind = type(value)
        plain = _PLAIN.get(kind)
        if plain is not None:
            try:
                return Ext(*plain(value))
            except TypeError as error:
                self.reason = str(error)
                raise
        members = _MEMBERS.get(kind)
        if members is not None:
            return self._linked(members, list(value))  # type: ignore[call-overload]
        return self._object(value, kind)

    def _object(self, value: Any, kind: type) -> Ext | Buffer:
        if kind is _Pairs:
            pairs = value.value
            return self._linked(Tag.PAIRS, [list(pairs), list(pairs.values())])
        if kind is _Large:
            return self._segment(value.value) if self._has_room() else value.value
        if kind in self._index:
            return self._registered(value, self._index[kind])
        if isinstance(value, PurePath):
            return Ext(Tag.PATH, str(value).encode("utf-8", "surrogatepass"))
        return self._numpy(value)

    def _linked(self, tag: Tag, content: object) -> Ext:
        """Pack a document of its own, and refer to it."""
        self._depth += 1
        if self._depth > EXT_DEPTH:
            self._depth -= 1
            self._refuse(f"more than {EXT_DEPTH} tuples, sets or objects in each other")
        try:
            data = self.pack(content)
        finally:
            self._depth -= 1
        self._documents.append(data)
        return Ext(tag, LINK.pack(len(self._documents) - 1))

    def _has_room(self) -> bool:
        """Tell whether the frame takes another segment."""
        return len(self.segments) < SEGMENT_COUNT

    def _segment(self, buffer: Buffer) -> Ext:
        self.segments.append(buffer)
        return Ext(Tag.SEGMENT, LINK.pack(len(self.segments) - 1))

    def _refuse(self, reason: str) -> NoReturn:
        self.reason = reason
        raise TypeError(reason)

    def _registered(self, value: Any, index: int) -> Ext:
        kind: Any = type(value)
        if isinstance(value, enum.Enum):
            if isinstance(value, enum.Flag) and value.name not in kind.__members__:
                return self._linked(Tag.FLAG, [index, value.value])
            return self._linked(Tag.ENUM, [index, value.name])
        if isinstance(value, BaseException):
            if rebuilding.steers(kind):
                self._refuse("an exception that would mean something to the pool")
            state = rebuilding.exception_state(value)
            return self._linked(Tag.EXCEPTION, [index, list(value.args), state])
        if rebuilding.is_named_tuple(kind):
            return self._linked(Tag.NAMED_TUPLE, [index, list(value)])
        try:
            names = rebuilding.field_names(kind)
        except TypeError as error:
            self._refuse(str(error))
        fields = {name: _lifted_item(getattr(value, name)) for name in names}
        return self._linked(Tag.DATACLASS, [index, fields])

    def _numpy(self, value: Any) -> Ext:
        numpy = sys.modules.get("numpy")
        if numpy is None or not isinstance(value, numpy.ndarray | numpy.generic):
            raise TypeError(type(value).__qualname__)
        dtype = value.dtype
        if isinstance(value, numpy.bytes_) and not value:
            return self._linked(Tag.SCALAR, ["|S0", b""])
        if not DTYPE.match(dtype.str):
            self._refuse(f"numpy's {dtype}")
        if isinstance(value, numpy.generic):
            return self._linked(Tag.SCALAR, [dtype.str, value.tobytes()])
        if type(value) is not numpy.ndarray:
            raise TypeError(type(value).__qualname__)
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        flat = value.ravel(order="F" if fortran else "C")
        payload: object
        if flat.nbytes < OUT_OF_BAND_BYTES or not self._has_room():
            payload = flat.tobytes()
        else:
            payload = len(self.segments)
            self.segments.append(memoryview(flat.view("u1")))
        shape, order = list(value.shape), "F" if fortran else "C"
        return self._linked(Tag.ARRAY, [dtype.str, shape, order, payload])


def _may_hold_large(data: bytes) -> bool:
    """Tell whether a packed document seems to hold large bytes."""
    for found in _LARGE_BYTES.finditer(data):
        start = found.start() + 1
        length = int.from_bytes(data[start : start + LINK.size], "big")
        if start + LINK.size + length <= len(data):
            return True
    return False


def _lifted(value: object) -> object:
    """Move large bytes of the outermost level out of band, before they are copied."""
    kind = type(value)
    if kind is list or kind is tuple:
        items: Sequence[object] = value  # type: ignore[assignment]
        if any(type(item) is bytes for item in items):
            return kind(map(_lifted_item, items))
        return value
    if kind is dict and isinstance(value, dict):
        if any(type(item) is bytes for item in value.values()):
            return {key: _lifted_item(item) for key, item in value.items()}
        return value
    return _lifted_item(value)


def _lifted_item(item: object) -> object:
    if isinstance(item, memoryview):
        # Not every memoryview is a row of bytes.
        item = item.cast("B") if item.c_contiguous and item.nbytes else item.tobytes()
    elif type(item) is not bytes and type(item) is not bytearray:
        return item
    return _Large(item) if len(item) >= OUT_OF_BAND_BYTES else item


def _walked(value: Any) -> Any:
    """Copy containers, wrapping what ormsgpack would refuse or copy into the body."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() or _is_sound(value) else _Text(value)
    if kind is list or kind is tuple:
        return kind(map(_walked, value))
    if kind is not dict:
        return _lifted_item(value)
    if all(type(key) is str and _is_sound(key) for key in value):
        return {key: _walked(item) for key, item in value.items()}
    return _Pairs({_walked(key): _walked(item) for key, item in value.items()})


def _is_sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _big_int(value: int) -> tuple[Tag, bytes]:
    size = value.bit_length() // 8 + 1
    if size > BIG_INT_BYTES:
        msg = f"an int of {value.bit_length()} bits, at most {8 * BIG_INT_BYTES - 8}"
        raise TypeError(msg)
    return Tag.BIG_INT, value.to_bytes(size, "big", signed=True)


def _short(tag: Tag, text: str) -> tuple[Tag, bytes]:
    if len(text) > DECIMAL_CHARACTERS:
        msg = f"{len(text)} digits, at most {DECIMAL_CHARACTERS}"
        raise TypeError(msg)
    return tag, text.encode("ascii")


def _moment(tag: Tag) -> Callable[[Any], tuple[Tag, bytes]]:
    def encoded(value: dt.datetime | dt.time) -> tuple[Tag, bytes]:
        zone, key = value.tzinfo, ""
        if isinstance(zone, zoneinfo.ZoneInfo) and ZONE.match(zone.key or ""):
            key = zone.key
        elif zone is not None and type(zone) is not dt.timezone:
            msg = f"a time zone of type {type(zone).__qualname__}"
            raise TypeError(msg)
        return tag, f"{value.isoformat()} {value.fold} {key}".encode("ascii")

    return encoded


_DOUBLES: Final = struct.Struct("!dd")
_TIMEDELTA: Final = struct.Struct("!iii")

_PLAIN: Final[dict[type, Callable[[Any], tuple[Tag, bytes]]]] = {
    int: _big_int,
    _Text: lambda value: (Tag.TEXT, value.value.encode("utf-8", "surrogatepass")),
    complex: lambda value: (Tag.COMPLEX, _DOUBLES.pack(value.real, value.imag)),
    decimal.Decimal: lambda value: _short(Tag.DECIMAL, str(value)),
    uuid.UUID: lambda value: (Tag.UUID, value.bytes),
    dt.datetime: _moment(Tag.DATETIME),
    dt.time: _moment(Tag.TIME),
    dt.date: lambda value: (Tag.DATE, value.isoformat().encode()),
    dt.timedelta: lambda value: (
        Tag.TIMEDELTA,
        _TIMEDELTA.pack(value.days, value.seconds, value.microseconds),
    ),
    range: lambda value: _short(Tag.RANGE, f"{value.start} {value.stop} {value.step}"),
}
"""Objects that are an extension of bytes."""

_MEMBERS: Final[dict[type, Tag]] = {
    tuple: Tag.TUPLE,
    set: Tag.SET,
    frozenset: Tag.FROZENSET,
}
"""Containers that are a document."""
