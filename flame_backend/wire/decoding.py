"""The parent's half of the data codec: rebuild values, or refuse; execute nothing.

Fixed functions for a fixed table of tags. Untrusted input: `decode` is total, its only
error is `MalformedFrame`; see `values` for the bounds.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import gc
import uuid
import zoneinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ormsgpack

from flame_backend.errors import MalformedFrame
from flame_backend.wire.values import BIG_INT_BYTES, DTYPE, EXT_DEPTH, Tag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DISTINCT_SHARE: Final = 4
"""A set whose members share hashes this often is an attack on the parent's GIL."""

GC_BYTES: Final = 1024 * 1024
"""From this body on the cyclic collector waits: it would walk half-built containers."""


def decode(
    body: bytes | memoryview,
    segments: Sequence[bytes] = (),
    *,
    result_types: Sequence[type] = (),
) -> Any:
    """Decode what `encode` made, or refuse; never executes anything.

    Raises:
        MalformedFrame: Anything else; the link it came from is not to be trusted.
    """
    decoder = _Decoder(segments, result_types, 2 * len(body) + 1024)
    pause = len(body) > GC_BYTES and gc.isenabled()
    if pause:
        gc.disable()
    try:
        value = ormsgpack.unpackb(body, ext_hook=decoder.extension)
    except MalformedFrame:
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes: one family out
        # ormsgpack tells that its hook failed and not how.
        msg = decoder.refusal or f"not a value of ours ({type(error).__name__})"
        raise MalformedFrame(msg) from None
    finally:
        if pause:
            gc.enable()
    if decoder.unused:
        msg = "a segment that no value refers to"
        raise MalformedFrame(msg)
    return value


class _Decoder:
    """Rebuilds extensions; one for each frame, with that frame's budgets."""

    def __init__(
        self, segments: Sequence[bytes], result_types: Sequence[type], budget: int
    ) -> None:
        self._segments = segments
        self._types = result_types
        self._budget = budget
        self._depth = 0
        self.unused = set(range(len(segments)))
        self.refusal = ""

    def extension(self, tag: int, data: bytes) -> Any:
        """Return the value of one extension."""
        self._budget -= len(data)
        self._depth += 1
        if self._budget < 0 or self._depth > EXT_DEPTH:
            msg = "values nested beyond the limit"
            raise MalformedFrame(msg)
        try:
            return _BUILDERS[tag](self, data)
        except MalformedFrame as error:
            self.refusal = str(error)
            raise
        finally:
            self._depth -= 1

    def items(self, data: bytes, count: int | None = None) -> list[Any]:
        """Decode a list, of that many items if told."""
        found = ormsgpack.unpackb(data, ext_hook=self.extension)
        if type(found) is not list or (count is not None and len(found) != count):
            msg = "an extension with other content than its kind has"
            raise MalformedFrame(msg)
        return found

    def distinct(self, data: bytes) -> list[Any]:
        """Decode the members of a set, refusing those made to collide."""
        found = self.items(data)
        _refuse_collisions(found)
        return found

    def pairs(self, data: bytes) -> dict[Any, Any]:
        """Decode a dict with keys of any kind."""
        found = self.items(data)
        keys = [key for key, _ in found]
        _refuse_collisions(keys)
        return dict(zip(keys, (item for _, item in found), strict=True))

    def segment(self, number: object) -> bytes:
        """Return a segment; each is referred to once."""
        if type(number) is not int or number not in self.unused:
            msg = "a segment that is not there, or referred to twice"
            raise MalformedFrame(msg)
        self.unused.discard(number)
        return self._segments[number]

    def registered(self, index: object, base: Any) -> Any:
        """Return one of the pool's result types."""
        if type(index) is int and 0 <= index < len(self._types):
            kind = self._types[index]
            if base(kind):
                return kind
        msg = "a type that is not among the pool's result_types"
        raise MalformedFrame(msg)

    def array(self, data: bytes) -> Any:
        """Rebuild an array; its size must be exactly what its shape says."""
        import numpy as np

        dtype, shape, order, payload = self.items(data, 4)
        buffer = payload if type(payload) is bytes else self.segment(payload)
        if not DTYPE.match(dtype) or order not in {"C", "F"} or len(shape) > 32:
            msg = "an array of a kind that is not carried"
            raise MalformedFrame(msg)
        flat = np.frombuffer(bytearray(buffer), dtype=np.dtype(dtype))
        return flat.reshape([_size(extent) for extent in shape], order=order)

    def scalar(self, data: bytes) -> Any:
        """Rebuild a numpy scalar."""
        import numpy as np

        dtype, payload = self.items(data, 2)
        if not DTYPE.match(dtype):
            msg = "a scalar of a kind that is not carried"
            raise MalformedFrame(msg)
        (value,) = np.frombuffer(payload, dtype=np.dtype(dtype))
        return value

    def dataclass(self, data: bytes) -> Any:
        """Rebuild a dataclass: its exact fields, set without running its code."""
        index, fields = self.items(data, 2)
        kind = self.registered(index, dataclasses.is_dataclass)
        names = {field.name for field in dataclasses.fields(kind)}
        if type(fields) is not dict or set(fields) != names:
            msg = "a dataclass with other fields than its class has"
            raise MalformedFrame(msg)
        value = object.__new__(kind)
        for name, item in fields.items():
            object.__setattr__(value, name, item)
        return value

    def member(self, data: bytes) -> Any:
        """Return an enum's member by name."""
        index, name = self.items(data, 2)
        kind = self.registered(index, lambda found: issubclass(found, enum.Enum))
        return kind.__members__[name]

    def exception(self, data: bytes) -> Any:
        """Rebuild an exception: arguments and attributes, no constructor."""
        index, args, state = self.items(data, 3)
        kind = self.registered(index, lambda found: issubclass(found, Exception))
        return rebuilt_exception(kind, tuple(args), state)


def rebuilt_exception(
    kind: type[Exception], args: tuple[Any, ...], state: dict[str, Any]
) -> Exception:
    """Make an exception without calling its constructor, which may want anything."""
    value = kind.__new__(kind, *args)
    value.args = args
    for name, item in state.items():
        if not name.startswith("__"):
            object.__setattr__(value, name, item)
    return value


def _size(extent: object) -> int:
    if type(extent) is not int or extent < 0:
        msg = "an array with a shape that is none"
        raise MalformedFrame(msg)
    return extent


def _refuse_collisions(members: list[Any]) -> None:
    # Members of a set are distinct, so equal hashes are collisions; a few happen by
    # chance (hash(-1) == hash(-2)), a quarter of them do not.
    if len(members) > 64:
        distinct = len({hash(member) for member in members})
        if distinct * DISTINCT_SHARE < len(members):
            msg = "a set or dict whose members were made to collide"
            raise MalformedFrame(msg)


def _moment_of(kind: Any) -> Callable[[_Decoder, bytes], Any]:
    def build(decoder: _Decoder, data: bytes) -> Any:
        text, fold, key = decoder.items(data, 3)
        value = kind.fromisoformat(text).replace(fold=fold)
        return value if key is None else value.replace(tzinfo=zoneinfo.ZoneInfo(key))

    return build


_BUILDERS: Final[dict[int, Callable[[_Decoder, bytes], Any]]] = {
    Tag.TUPLE: lambda decoder, data: tuple(decoder.items(data)),
    Tag.SET: lambda decoder, data: set(decoder.distinct(data)),
    Tag.FROZENSET: lambda decoder, data: frozenset(decoder.distinct(data)),
    Tag.PAIRS: _Decoder.pairs,
    Tag.BIG_INT: lambda _, data: int.from_bytes(
        data[: BIG_INT_BYTES + 1], "big", signed=True
    ),
    Tag.COMPLEX: lambda decoder, data: complex(*decoder.items(data, 2)),
    Tag.DECIMAL: lambda _, data: decimal.Decimal(data[:4096].decode("ascii")),
    Tag.UUID: lambda _, data: uuid.UUID(bytes=bytes(data)),
    Tag.DATETIME: _moment_of(dt.datetime),
    Tag.TIME: _moment_of(dt.time),
    Tag.DATE: lambda _, data: dt.date.fromisoformat(data.decode("ascii")),
    Tag.TIMEDELTA: lambda decoder, data: dt.timedelta(*decoder.items(data, 3)),
    Tag.PATH: lambda _, data: Path(bytes(data).decode("utf-8", "surrogateescape")),
    Tag.RANGE: lambda decoder, data: range(*decoder.items(data, 3)),
    Tag.SEGMENT: lambda decoder, data: decoder.segment(ormsgpack.unpackb(data)),
    Tag.ARRAY: _Decoder.array,
    Tag.SCALAR: _Decoder.scalar,
    Tag.DATACLASS: _Decoder.dataclass,
    Tag.ENUM: _Decoder.member,
    Tag.EXCEPTION: _Decoder.exception,
}
