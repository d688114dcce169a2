"""Tags and limits of the data codec, shared by both of its halves. Pure.

A body is one MessagePack document; or, when it holds values that MessagePack has no
container for, `CHUNKED`, a count, that many lengths, that many documents, and the last
document. An extension either holds plain bytes, or the number of an earlier document,
and each document is referred to exactly once. So no decoder ever runs inside another
one and every byte is decoded once: extensions inside extensions would multiply memory
by their depth, and the stack they need as well.
"""

from __future__ import annotations

import enum
import re
import struct
from typing import Final

CHUNKED: Final = 0xC1
"""First byte of a body of several documents; MessagePack never uses it."""

COUNT: Final = struct.Struct("!BI")
"""`CHUNKED`, and how many documents come before the last."""

LINK: Final = struct.Struct("!I")
"""A document's length, or what an extension holds: number of document or segment."""

OUT_OF_BAND_BYTES: Final = 64 * 1024
"""Buffers from this size on travel as segments, uncopied: one byte costs one."""

EXT_DEPTH: Final = 32
"""Documents referred to by documents; tuples this deep hash and compare safely."""

BIG_INT_BYTES: Final = 513
"""4096 bits and a sign; int(bytes) is linear, printing one is not."""

DECIMAL_CHARACTERS: Final = 4096

CONTAINER_COUNT: Final = 1024 * 1024
"""Lists and dicts of a body of up to 16 MiB, in proportion above. As many empty lists
as fit into 16 MiB hold the interpreter for 2.4 s, and 0.8 s more to be collected."""

BYTES_PER_CONTAINER: Final = 16

DTYPE: Final = re.compile(
    r"(?:\|b1|\|[iu]1|[<>][iu][248]|[<>]f[248]|[<>]c(?:8|16)"
    r"|[<>][mM]8(?:\[[a-zA-Z]{1,2}\])?|\|S[1-9][0-9]{0,5})\Z"
)
"""Arrays that are plain numbers and bytes. Objects would be the peer's pointers, text
with code points out of range breaks numpy."""

ZONE: Final = re.compile(r"[A-Za-z0-9_+-]{1,32}(?:/[A-Za-z0-9_+-]{1,32}){0,3}\Z")
"""Names of time zones. No dots: what `zoneinfo` is told is looked up as a file, and
as a package below `tzdata`."""


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
    FLAG = 21
    TEXT = 22
    NAMED_TUPLE = 23


_CONTAINERS: Final = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])

# What stands behind a first byte of 0xC0 to 0xDF: fixed bytes; or a length of 1, 2 or
# 4 bytes and then that many, and the tag of an extension; or a container's length.
_FIXED: Final = {
    0xC0: 0, 0xC1: 0, 0xC2: 0, 0xC3: 0,
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
_COUNTED: Final = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0),
    0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
}  # fmt: skip
_HEAD: Final = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}


def container_limit(size: int) -> int:
    """Return how many lists and dicts a body of that many bytes may hold."""
    return max(CONTAINER_COUNT, size // BYTES_PER_CONTAINER)


def is_crowded(body: bytes | memoryview) -> bool:
    """Tell whether a body holds more lists and dicts than one may."""
    limit = container_limit(len(body))
    return len(body) > limit and has_more_containers(body, limit)


def has_more_containers(body: bytes | memoryview, limit: int) -> bool:
    """Tell whether a body holds more lists and dicts than that."""
    data = bytes(body)
    # No byte of a container's head, no container: decides all but text in scripts
    # whose UTF-8 is made of such bytes, and hostile bodies.
    if len(data) - len(data.translate(None, _CONTAINERS)) <= limit:
        return False
    start = 0
    if data[0] == CHUNKED and len(data) >= COUNT.size:
        start = COUNT.size + LINK.size * int(COUNT.unpack_from(data)[1])
    return _containers(data, start, limit) > limit


def _containers(data: bytes, position: int, limit: int) -> int:
    """Count container heads, whatever stands in which."""
    count, end = 0, len(data)
    while position < end and count <= limit:
        first = data[position]
        position += 1
        if first < 0x80 or first >= 0xE0:
            continue
        if first < 0xA0:
            count += 1
        elif first < 0xC0:
            position += first & 0x1F
        elif first in _FIXED:
            position += _FIXED[first]
        elif first in _HEAD:
            count += 1
            position += _HEAD[first]
        else:
            width, more = _COUNTED[first]
            length = int.from_bytes(data[position : position + width], "big")
            position += width + more + length
    return count
