"""Values as data: what a runner may send back, decoded without executing anything.

A runner may be compromised, so its results are no pickles. ormsgpack carries what
MessagePack knows natively; every other type travels as an extension with a tag of the
table below, and its decoder is a fixed function. No name from the wire is imported:
dataclasses, enums and exceptions are an index into the pool's `result_types`.

Types come back exactly as they were sent, with three stated exceptions: bytearray and
memoryview come back as bytes, and a Path as a Path of this system.

Encoding is here, on the runner's side; the parent's half is `decoding`, which is total
on any bytes. Memory is
bounded by about 72 times the body, whose limit is `max_result`; nesting, and bytes that
stand inside each other, are budgeted; sets and keys that collide are refused.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import re
import uuid
import zoneinfo
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import ormsgpack
from ormsgpack import Ext

from flame_backend.errors import PayloadTooLarge, ResultNotSerializable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Buffer = bytes | bytearray | memoryview

OUT_OF_BAND_BYTES: Final = 64 * 1024
"""Buffers from this size on travel as segments, uncopied: one byte costs one."""

EXT_DEPTH: Final = 32
"""Extensions inside extensions; each level decodes its bytes once more."""

BIG_INT_BYTES: Final = 512
"""4096 bits; int(bytes) is linear, printing one is not."""

_OPTIONS: Final = (
    ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)

# bool, int, uint, float, complex, datetime64, timedelta64, bytes, text; no objects.
DTYPE: Final = re.compile(
    r"(?:\|b1|[<>|][iu][1248]|[<>]f[248]|[<>]c(?:8|16)"
    r"|[<>][mM]8(?:\[[a-zA-Z]{1,2}\])?|\|S[0-9]{1,6})\Z"
)


class Tag(enum.IntEnum):
    """Extension types; a number is never given a second meaning."""

    TUPLE = 1
    SET = 2
    FROZENSET = 3
    PAIRS = 4
    BIG_INT = 5
    COMPLEX = 6
    DECIMAL = 7
    UUID = 8
    DATETIME = 9
    DATE = 10
    TIME = 11
    TIMEDELTA = 12
    PATH = 13
    RANGE = 14
    SEGMENT = 15
    ARRAY = 16
    SCALAR = 17
    DATACLASS = 18
    ENUM = 19
    EXCEPTION = 20
    ARROW = 21  # reserved for tables


class _Pairs:
    """A dict with keys that are not text, wrapped by the walk for `_Encoder`."""

    __slots__ = ("items",)

    def __init__(self, items: list[list[Any]]) -> None:
        self.items = items


class Encoded:
    """A value on its way: the body, and the buffers that travel beside it."""

    __slots__ = ("body", "segments")

    def __init__(self, body: bytes, segments: list[Buffer]) -> None:
        self.body = body
        self.segments = segments


# ---------------------------------------------------------------------- encoding


def encode(
    value: object, *, result_types: Sequence[type] = (), limit: int | None = None
) -> Encoded:
    """Encode a value.

    Args:
        value: What the function returned.
        result_types: Dataclasses, enums and exceptions that may appear in it.
        limit: Largest body in bytes (max_result).

    Raises:
        ResultNotSerializable: A type that is not carried; names it, where it sits,
            and the remedy.
        PayloadTooLarge: The body is larger than the limit.
    """
    encoder = _Encoder(result_types)
    try:
        body = encoder.pack(_lifted(value))
    except RecursionError:
        msg = "the result is nested too deeply, or contains itself"
        raise ResultNotSerializable(msg) from None
    except (TypeError, ValueError) as error:
        raise ResultNotSerializable(_complaint(value, encoder, error)) from None
    if limit is not None and len(body) > limit:
        raise PayloadTooLarge("result", len(body), limit)
    return Encoded(body, encoder.segments)


def _lifted(value: object) -> object:
    """Move large bytes of the outermost level out of band."""
    if isinstance(value, bytes | bytearray | memoryview):
        return _Large(value) if len(value) >= OUT_OF_BAND_BYTES else value
    kind = type(value)
    if kind is list or kind is tuple:
        sequence: Sequence[object] = value  # type: ignore[assignment]
        if any(
            type(item) is bytes and len(item) >= OUT_OF_BAND_BYTES for item in sequence
        ):
            return kind(map(_lifted_item, sequence))
    if kind is dict and isinstance(value, dict):
        return {key: _lifted_item(item) for key, item in value.items()}
    return value


def _lifted_item(item: object) -> object:
    large = type(item) is bytes and len(item) >= OUT_OF_BAND_BYTES
    return _Large(item) if large else item  # type: ignore[arg-type]


class _Large:
    """Bytes that travel as a segment."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer


class _Encoder:
    """Packs one value; `default` gets every object MessagePack has no type for."""

    def __init__(self, result_types: Sequence[type]) -> None:
        self.segments: list[Buffer] = []
        self._index = {kind: number for number, kind in enumerate(result_types)}
        self._depth = 0

    def pack(self, value: object) -> bytes:
        """Pack with text keys, and once more through a walk when there are others."""
        mark = len(self.segments)
        try:
            return ormsgpack.packb(value, default=self.default, option=_OPTIONS)
        except ormsgpack.MsgpackEncodeError as error:
            if "key" not in str(error):
                raise
        del self.segments[mark:]
        return ormsgpack.packb(_walked(value), default=self.default, option=_OPTIONS)

    def default(self, value: object) -> Ext:
        """Return the extension for one object.

        Raises:
            TypeError: None exists.
        """
        self._depth += 1
        if self._depth > EXT_DEPTH:
            msg = "nested too deeply"
            raise TypeError(msg)
        try:
            return self._extension(value)
        finally:
            self._depth -= 1

    def _extension(self, value: object) -> Ext:
        kind = type(value)
        encode_plain = _PLAIN.get(kind)
        if encode_plain is not None:
            tag, payload = encode_plain(value)
            return Ext(
                tag, payload if isinstance(payload, bytes) else self.pack(payload)
            )
        if isinstance(value, _Large):
            self.segments.append(value.buffer)
            return Ext(Tag.SEGMENT, self.pack(len(self.segments) - 1))
        if kind in self._index:
            return self._registered(value, self._index[kind])
        if isinstance(value, PurePath):
            return Ext(Tag.PATH, str(value).encode("utf-8", "surrogateescape"))
        if kind.__module__.partition(".")[0] == "numpy":
            return self._numpy(value)
        raise TypeError(kind.__qualname__)

    def _registered(self, value: Any, index: int) -> Ext:
        if isinstance(value, enum.Enum):
            return Ext(Tag.ENUM, self.pack([index, value.name]))
        if isinstance(value, BaseException):
            state = {str(key): item for key, item in vars(value).items()}
            state.pop("__notes__", None)
            return Ext(Tag.EXCEPTION, self.pack([index, list(value.args), state]))
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return Ext(Tag.DATACLASS, self.pack([index, fields]))

    def _numpy(self, value: Any) -> Ext:
        dtype = getattr(value, "dtype", None)
        if dtype is None or not DTYPE.match(dtype.str):
            msg = f"numpy {dtype or type(value).__name__}"
            raise TypeError(msg)
        if not hasattr(value, "__array_finalize__") or not value.shape:
            return Ext(Tag.SCALAR, self.pack([dtype.str, value.tobytes()]))
        if type(value).__name__ != "ndarray":
            raise TypeError(type(value).__qualname__)
        order = (
            "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        )
        flat = value.ravel(order="K") if value.flags.forc else value.ravel()
        buffer: Buffer = memoryview(flat.view("u1"))
        payload: object = bytes(buffer)
        if len(buffer) >= OUT_OF_BAND_BYTES:
            self.segments.append(buffer)
            payload = len(self.segments) - 1
        return Ext(Tag.ARRAY, self.pack([dtype.str, list(value.shape), order, payload]))


def _big_int(value: int) -> tuple[Tag, object]:
    size = value.bit_length() // 8 + 1
    if size > BIG_INT_BYTES:
        msg = f"int of {value.bit_length()} bits, at most {8 * BIG_INT_BYTES}"
        raise TypeError(msg)
    return Tag.BIG_INT, value.to_bytes(size, "big", signed=True)


def _zone(value: dt.datetime | dt.time) -> str | None:
    zone = value.tzinfo
    if zone is None or type(zone) is dt.timezone:
        return None
    if isinstance(zone, zoneinfo.ZoneInfo) and zone.key:
        return zone.key
    raise TypeError(type(zone).__qualname__)


def _moment(tag: Tag) -> Callable[[Any], tuple[Tag, object]]:
    return lambda value: (tag, [value.isoformat(), value.fold, _zone(value)])


_PLAIN: Final[dict[type, Callable[[Any], tuple[Tag, object]]]] = {
    tuple: lambda value: (Tag.TUPLE, list(value)),
    set: lambda value: (Tag.SET, list(value)),
    frozenset: lambda value: (Tag.FROZENSET, list(value)),
    _Pairs: lambda value: (Tag.PAIRS, value.items),
    int: _big_int,
    complex: lambda value: (Tag.COMPLEX, [value.real, value.imag]),
    decimal.Decimal: lambda value: (Tag.DECIMAL, str(value).encode()),
    uuid.UUID: lambda value: (Tag.UUID, value.bytes),
    dt.datetime: _moment(Tag.DATETIME),
    dt.time: _moment(Tag.TIME),
    dt.date: lambda value: (Tag.DATE, value.isoformat().encode()),
    dt.timedelta: lambda value: (
        Tag.TIMEDELTA,
        [value.days, value.seconds, value.microseconds],
    ),
    range: lambda value: (Tag.RANGE, [value.start, value.stop, value.step]),
}


def _walked(value: Any) -> Any:
    """Copy containers, with every dict that has other keys than text as `_Pairs`."""
    kind = type(value)
    if kind is dict:
        if all(type(key) is str for key in value):
            return {key: _walked(item) for key, item in value.items()}
        return _Pairs([[_walked(key), _walked(item)] for key, item in value.items()])
    if kind is list or kind is tuple:
        return kind(map(_walked, value))
    return value


def _complaint(value: object, encoder: _Encoder, error: Exception) -> str:
    """Say which part of the result cannot travel, and what to do."""
    where, part = _offender(value, "result", encoder, 0)
    kind = type(part)
    remedy = 'return plain data, or use Pool(results="pickle")'
    if dataclasses.is_dataclass(kind) or isinstance(part, enum.Enum | BaseException):
        remedy = f"pass Pool(result_types=({kind.__name__}, ...)), or {remedy}"
    detail = str(error.__cause__ or error)
    more = "" if detail in {kind.__qualname__, kind.__name__} else f" ({detail[:200]})"
    return f"{where} is of type {kind.__module__}.{kind.__qualname__}{more}: {remedy}"


def _offender(
    value: object, where: str, encoder: _Encoder, depth: int
) -> tuple[str, object]:
    """Find the innermost part that fails on its own."""
    parts: list[tuple[str, object]] = []
    if isinstance(value, dict):
        parts = [(f"{where}[{key!r:.40}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = [(f"{where}[{number}]", item) for number, item in enumerate(value)]
    elif type(value) in encoder._index and dataclasses.is_dataclass(value):  # noqa: SLF001 - same module
        parts = [
            (f"{where}.{field.name}", getattr(value, field.name))
            for field in dataclasses.fields(value)
        ]
    if depth < EXT_DEPTH:
        for name, part in parts:
            try:
                encoder.pack(part)
            except (TypeError, ValueError, RecursionError):
                return _offender(part, name, encoder, depth + 1)
    return where, value
