"""The parent's half of the data codec: rebuild values, or refuse; execute nothing.

Fixed functions for a fixed table of tags; see `tags` for how a body is laid out.
Untrusted input: `decode` is total, its only error is `MalformedFrame`; see `values`
for the bounds.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import gc
import struct
import uuid
import zoneinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import ormsgpack

from flame_backend.errors import MalformedFrame
from flame_backend.wire import rebuilding, stack
from flame_backend.wire.hashing import collide
from flame_backend.wire.tags import (
    BIG_INT_BYTES,
    CHUNKED,
    CONTAINER_COUNT,
    COUNT,
    DECIMAL_CHARACTERS,
    EXT_DEPTH,
    LINK,
    ZONE,
    Tag,
    is_crowded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Bytes = bytes | memoryview

GC_BYTES: Final = 16 * 1024
"""From this body on the cyclic collector waits: it would walk half-built containers."""


def decode(
    body: Bytes,
    segments: Sequence[bytes] = (),
    *,
    result_types: Sequence[type] = (),
) -> Any:
    """Decode what `encode` made, or refuse; never executes anything.

    Raises:
        MalformedFrame: Anything else; the link it came from is not to be trusted.
    """
    size = len(body)
    if size <= stack.SAFE_BYTES and not segments:
        # None, numbers and short texts are nearly all results there are.
        try:
            return _unpack(body)
        except ValueError:
            pass  # an extension, or nonsense: told apart below
    if size > CONTAINER_COUNT and is_crowded(body):
        _refuse("more lists and dicts than a body of its size may hold")
    decoder = _Decoder(segments, result_types)
    pause = size > GC_BYTES and gc.isenabled()
    if pause:
        gc.disable()
    try:
        if size <= stack.SAFE_BYTES or stack.is_large():
            return decoder.body(body)
        return stack.on_large_stack(lambda: decoder.body(body))
    except MalformedFrame:
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes: one family out
        # ormsgpack tells that its hook failed and not how.
        msg = decoder.refusal or f"not a value of ours ({type(error).__name__})"
        raise MalformedFrame(msg) from None
    finally:
        if pause:
            gc.enable()


_unpack: Final = ormsgpack.unpackb
_GONE: Final = object()
_SEGMENT: Final = int(Tag.SEGMENT)


class _Decoder:
    """Rebuilds one body; every document and segment is used exactly once."""

    __slots__ = (
        "_deepest",
        "_depths",
        "_documents",
        "_left",
        "_segments",
        "_types",
        "_unused",
        "refusal",
    )

    def __init__(self, segments: Sequence[bytes], result_types: Sequence[type]) -> None:
        self._segments = segments
        self._types = result_types
        self._unused = set(range(len(segments))) if segments else set()
        # Documents decoded so far, each `_GONE` once it was referred to, and how deep
        # documents stand in each other in them.
        self._documents: list[Any] = []
        self._depths = bytearray()
        self._deepest = 0
        self._left = 0
        self.refusal = ""

    def body(self, body: Bytes) -> Any:
        """Decode a body: its documents one after another, and the last."""
        if len(body) and body[0] == CHUNKED:
            body = self._read_documents(bytes(body))
        value = ormsgpack.unpackb(body, ext_hook=self.extension)
        if self._left or self._unused:
            _refuse("a document or a segment that no value refers to")
        return value

    def _read_documents(self, body: bytes) -> bytes:
        """Decode all documents but the last, which is returned."""
        _, count = COUNT.unpack_from(body)
        lengths = struct.unpack_from(f"!{count}I", body, COUNT.size)
        documents, depths, hook = self._documents, self._depths, self.extension
        unpack = ormsgpack.unpackb
        position = COUNT.size + LINK.size * count
        for length in lengths:
            self._deepest = 0
            end = position + length
            documents.append(unpack(body[position:end], ext_hook=hook))
            depths.append(self._deepest)
            self._left += 1
            position = end
        return body[position:]

    def extension(self, tag: int, data: bytes) -> Any:
        """Return the value of one extension."""
        try:
            build = _LINKED.get(tag)
            if build is not None:
                return build(self, self._document(*LINK.unpack(data)))
            if tag == _SEGMENT:
                return self.segment(*LINK.unpack(data))
            return _PLAIN[tag](data)
        except MalformedFrame as error:
            self.refusal = str(error)
            raise

    def _document(self, number: int) -> Any:
        """Return an earlier document; each is referred to once."""
        documents = self._documents
        if number >= len(documents) or documents[number] is _GONE:
            _refuse("a document that is not there, or referred to twice")
        found = documents[number]
        documents[number] = _GONE
        self._left -= 1
        depth = self._depths[number] + 1
        if depth > self._deepest:
            if depth > EXT_DEPTH:
                _refuse("values nested beyond the limit")
            self._deepest = depth
        return found

    def segment(self, number: object) -> bytes:
        """Return a segment; each is referred to once."""
        if type(number) is not int or number not in self._unused:
            _refuse("a segment that is not there, or referred to twice")
        self._unused.discard(number)
        return self._segments[number]

    def members(self, found: Any) -> list[Any]:
        """Return the members of a set, refusing those made to collide."""
        members = _listed(found)
        if collide(members, in_set=True):
            _refuse("a set whose members were made to collide")
        return members

    def pairs(self, found: Any) -> dict[Any, Any]:
        """Return a dict with keys of any kind."""
        keys, items = _listed(found, 2)
        if collide(keys, in_set=False):
            _refuse("a dict whose keys were made to collide")
        return dict(zip(keys, items, strict=True))

    def registered(self, index: object) -> Any:
        """Return one of the pool's result types."""
        if type(index) is not int or not 0 <= index < len(self._types):
            _refuse("a type that is not among the pool's result_types")
        return self._types[index]

    def array(self, found: Any) -> Any:
        """Rebuild an array; its size must be exactly what its shape says."""
        dtype, shape, order, payload = _listed(found, 4)
        data = payload if type(payload) is bytes else self.segment(payload)
        return rebuilding.array(dtype, shape, order, data)

    def dataclass(self, found: Any) -> Any:
        """Rebuild a dataclass: its exact fields, set without running its code."""
        index, items = _listed(found, 2)
        kind = self.registered(index)
        if type(items) is not dict or items.keys() != rebuilding.field_names(kind):
            _refuse("a dataclass with other fields than its class has")
        value = object.__new__(kind)
        for name, item in items.items():
            object.__setattr__(value, name, item)
        return value

    def named_tuple(self, found: Any) -> Any:
        """Rebuild a named tuple without its constructor."""
        index, items = _listed(found, 2)
        kind = self.registered(index)
        if not rebuilding.is_named_tuple(kind) or len(items) != len(kind._fields):
            _refuse("a named tuple with other fields than its class has")
        return tuple.__new__(kind, items)

    def member(self, found: Any) -> Any:
        """Return an enum's member by name."""
        index, name = _listed(found, 2)
        kind = self.registered(index)
        if not issubclass(kind, enum.Enum):
            _refuse("a member of what is no enum")
        return kind.__members__[name]

    def flag(self, found: Any) -> Any:
        """Return a combination of flags by value."""
        index, value = _listed(found, 2)
        kind = self.registered(index)
        if not issubclass(kind, enum.Flag) or type(value) is not int:
            _refuse("flags of what is no flag")
        return kind(value)

    def exception(self, found: Any) -> Any:
        """Rebuild an exception: arguments and attributes, no constructor."""
        index, args, state = _listed(found, 3)
        kind = self.registered(index)
        if not issubclass(kind, Exception) or rebuilding.steers(kind):
            _refuse("an exception that is not carried")
        return rebuilding.exception(kind, tuple(_listed(args)), state)


def _refuse(reason: str) -> NoReturn:
    raise MalformedFrame(reason)


def _listed(found: Any, count: int | None = None) -> list[Any]:
    """Return a document that is a list, of that many items if told."""
    if type(found) is not list or (count is not None and len(found) != count):
        _refuse("an extension with other content than its kind has")
    return found


def _bounded(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        _refuse("a number longer than one may be")
    return data


def _moment(kind: Any) -> Callable[[bytes], Any]:
    """Rebuild what `values` writes as ISO text, fold and name of the time zone."""

    def build(data: bytes) -> Any:
        text, fold, key = data.decode("ascii").split(" ")
        value = kind.fromisoformat(text).replace(fold=int(fold))
        if not key:
            return value
        if not ZONE.match(key):
            _refuse("a time zone of another form than they have")
        return value.replace(tzinfo=zoneinfo.ZoneInfo(key))

    return build


def _range(data: bytes) -> range:
    start, stop, step = _bounded(data, DECIMAL_CHARACTERS).split(b" ")
    return range(int(start), int(stop), int(step))


_DOUBLES: Final = struct.Struct("!dd")
_TIMEDELTA: Final = struct.Struct("!iii")

_PLAIN: Final[dict[int, Callable[[bytes], Any]]] = {
    Tag.BIG_INT: lambda data: int.from_bytes(
        _bounded(data, BIG_INT_BYTES), "big", signed=True
    ),
    Tag.COMPLEX: lambda data: complex(*_DOUBLES.unpack(data)),
    Tag.DECIMAL: lambda data: decimal.Decimal(
        _bounded(data, DECIMAL_CHARACTERS).decode("ascii")
    ),
    Tag.UUID: lambda data: uuid.UUID(bytes=data),
    Tag.DATETIME: _moment(dt.datetime),
    Tag.TIME: _moment(dt.time),
    Tag.DATE: lambda data: dt.date.fromisoformat(data.decode("ascii")),
    Tag.TIMEDELTA: lambda data: dt.timedelta(*_TIMEDELTA.unpack(data)),
    Tag.PATH: lambda data: Path(data.decode("utf-8", "surrogatepass")),
    Tag.RANGE: _range,
    Tag.TEXT: lambda data: data.decode("utf-8", "surrogatepass"),
}
"""Extensions that hold bytes."""

_LINKED: Final[dict[int, Callable[[_Decoder, Any], Any]]] = {
    Tag.TUPLE: lambda _, found: tuple(_listed(found)),
    Tag.SET: lambda decoder, found: set(decoder.members(found)),
    Tag.FROZENSET: lambda decoder, found: frozenset(decoder.members(found)),
    Tag.PAIRS: _Decoder.pairs,
    Tag.ARRAY: _Decoder.array,
    Tag.SCALAR: lambda _, found: rebuilding.scalar(*_listed(found, 2)),
    Tag.DATACLASS: _Decoder.dataclass,
    Tag.NAMED_TUPLE: _Decoder.named_tuple,
    Tag.ENUM: _Decoder.member,
    Tag.FLAG: _Decoder.flag,
    Tag.EXCEPTION: _Decoder.exception,
}
"""Extensions that refer to a document."""
