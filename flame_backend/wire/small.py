"""Values of a few bytes, packed without the data codec.

None, numbers and short texts are nearly all results there are, and the codec is a
third of what a runner would have to load before its first one. What is written here is
MessagePack as `values` writes it, and is read by `decoding` like anything else.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    Buffer = bytes | bytearray | memoryview

TEXT_BYTES: Final = 255

_INT: Final = struct.Struct("!Bq")
_FLOAT: Final = struct.Struct("!Bd")
_INT64: Final = 2**63


class Encoded:
    """A value on its way: the body, and the buffers that travel beside it."""

    __slots__ = ("body", "segments")

    def __init__(self, body: bytes, segments: list[Buffer]) -> None:
        self.body = body
        self.segments = segments


def small_body(value: object) -> bytes | None:
    """Return the body of a value, None when the codec has to see to it."""
    if value is None:
        return b"\xc0"
    kind = type(value)
    if kind is bool:
        return b"\xc3" if value else b"\xc2"
    if kind is int:
        return _packed_int(value)  # type: ignore[arg-type]
    if kind is float:
        return _FLOAT.pack(0xCB, value)
    if kind is str:
        return _packed_text(value)  # type: ignore[arg-type]
    return None


def _packed_int(value: int) -> bytes | None:
    if 0 <= value < 128:
        return bytes((value,))
    return _INT.pack(0xD3, value) if -_INT64 <= value < _INT64 else None


def _packed_text(value: str) -> bytes | None:
    if len(value) > TEXT_BYTES:
        return None
    try:
        data = value.encode()
    except UnicodeEncodeError:
        # Lone surrogates, as file names have them.
        return None
    return bytes((0xD9, len(data))) + data if len(data) <= TEXT_BYTES else None
