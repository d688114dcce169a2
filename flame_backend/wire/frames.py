"""Frames: how bytes on a link are cut into messages (docs/decisions/0003).

A frame is a 16-byte header, the lengths of its out-of-band segments, the body and
the segments. Pure bytes: this module knows no socket and no codec, and a runner
loads it before it says HELLO, so it imports next to nothing.

Untrusted input: everything here may come from a hostile peer. Every length is checked
against `Limits` before a byte is allocated, and `MalformedFrame` is the only error.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from flame_backend.errors import MalformedFrame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

HEADER: Final = struct.Struct("!BBHIQ")
"""Kind, flags (always 0), segment count, body length, call id; big-endian."""

HEADER_BYTES: Final = HEADER.size
LENGTH_BYTES: Final = 8

HELLO_BODY_BYTES: Final = 16 * 1024
"""What an unauthenticated peer may send: a bound token has 1-2 KiB, names little."""

CONTROL_BODY_BYTES: Final = 1024 * 1024
"""Control frames are small; tracebacks in FAILED are capped far below this."""

WELCOME_BODY_BYTES: Final = 64 * 1024 * 1024
"""WELCOME carries the pool's setup, classes of the main script included."""

SEGMENT_COUNT: Final = 4096
"""Segments of one frame; each stands for a buffer of 64 KiB or more."""


class Kind(IntEnum):
    """What a frame says; who may send which is the table in docs/decisions/0003."""

    HELLO = 1
    WELCOME = 2
    READY = 3
    FAILED = 4
    OPEN_SLOT = 5
    SLOT_ENDED = 6
    KILL_SLOT = 7
    PING = 8
    DRAIN = 9
    SHUTDOWN = 10
    GOODBYE = 11
    TICKET = 12
    CALL = 13
    RESULT = 14
    ERROR = 15
    PROGRESS = 16
    LOG = 17


KINDS: Final = {int(kind): kind for kind in Kind}


class Limits:
    """What one end of a link takes.

    Attributes:
        body_bytes: Largest body.
        segment_count: Most segments.
        total_bytes: Largest body and segments together.
    """

    __slots__ = ("body_bytes", "segment_count", "total_bytes")

    def __init__(
        self, body_bytes: int, segment_count: int = 0, total_bytes: int | None = None
    ) -> None:
        self.body_bytes = body_bytes
        self.segment_count = segment_count
        self.total_bytes = body_bytes if total_bytes is None else total_bytes


HELLO_LIMITS: Final = Limits(HELLO_BODY_BYTES)
CONTROL_LIMITS: Final = Limits(CONTROL_BODY_BYTES)
WELCOME_LIMITS: Final = Limits(WELCOME_BODY_BYTES)


class Frame:
    """One message.

    Attributes:
        kind: What it says.
        call_id: The call it belongs to, 0 on control links.
        body: Its body.
        segments: Its out-of-band buffers, in order.
    """

    __slots__ = ("body", "call_id", "kind", "segments")

    def __init__(
        self,
        kind: Kind,
        call_id: int,
        body: bytes | memoryview,
        segments: Sequence[bytes] = (),
    ) -> None:
        self.kind = kind
        self.call_id = call_id
        self.body = body
        self.segments = segments

    def __repr__(self) -> str:
        return (
            f"<Frame {self.kind.name} call={self.call_id} body={len(self.body)} "
            f"segments={len(self.segments)}>"
        )


def pack_head(
    kind: int, call_id: int, body_length: int, segment_lengths: Sequence[int] = ()
) -> bytes:
    """Return a frame's header and segment lengths; body and segments follow."""
    count = len(segment_lengths)
    head = HEADER.pack(kind, 0, count, body_length, call_id)
    if not count:
        return head
    return head + struct.pack(f"!{count}Q", *segment_lengths)


def pack_frame(kind: int, body: bytes = b"", call_id: int = 0) -> bytes:
    """Return a whole frame without segments; for control links."""
    return HEADER.pack(kind, 0, 0, len(body), call_id) + body


def parse_header(
    data: bytes | bytearray | memoryview, limits: Limits, offset: int = 0
) -> tuple[Kind, int, int, int]:
    """Return kind, segment count, body length and call id of a header.

    Raises:
        MalformedFrame: Unknown kind, flags, or a length over its limit.
    """
    kind, flags, count, body_length, call_id = HEADER.unpack_from(data, offset)
    known = KINDS.get(kind)
    if known is None or flags:
        msg = f"unknown frame kind {kind} or flags {flags}"
        raise MalformedFrame(msg)
    if body_length > limits.body_bytes or body_length > limits.total_bytes:
        msg = f"{known.name} body of {body_length} bytes, limit {limits.body_bytes}"
        raise MalformedFrame(msg)
    if count > limits.segment_count:
        msg = f"{known.name} with {count} segments, limit {limits.segment_count}"
        raise MalformedFrame(msg)
    return known, count, body_length, call_id


def parse_lengths(
    data: bytes | bytearray | memoryview,
    count: int,
    body_length: int,
    limits: Limits,
    offset: int = 0,
) -> tuple[int, ...]:
    """Return the segment lengths that stand behind a header.

    Raises:
        MalformedFrame: Body and segments together break the limit.
    """
    lengths: tuple[int, ...] = struct.unpack_from(f"!{count}Q", data, offset)
    total = body_length + sum(lengths)
    if total > limits.total_bytes:
        msg = f"frame of {total} bytes, limit {limits.total_bytes}"
        raise MalformedFrame(msg)
    return lengths


class FrameDecoder:
    """Cuts a byte stream into frames, however it was split on the way.

    For control links and other places where bytes arrive when they like; a slot's
    link reads its frames with blocking reads instead. Frames are copied out, so what
    is fed may be reused. After an error the decoder refuses further bytes.
    """

    __slots__ = ("_broken", "_buffer", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._broken = False

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for the rest of their frame."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take bytes and return the frames they complete, in order.

        Raises:
            MalformedFrame: A header breaks a rule; frames before it are lost with the
                link, as nothing behind a broken frame can be trusted.
        """
        if self._broken:
            msg = "bytes after a malformed frame"
            raise MalformedFrame(msg)
        self._buffer += data
        frames: list[Frame] = []
        try:
            while (frame := self._next()) is not None:
                frames.append(frame)
        except MalformedFrame:
            self._broken = True
            self._buffer.clear()
            raise
        return frames

    def _next(self) -> Frame | None:
        buffer = self._buffer
        if len(buffer) < HEADER_BYTES:
            return None
        kind, count, body_length, call_id = parse_header(buffer, self._limits)
        start = HEADER_BYTES + LENGTH_BYTES * count
        if len(buffer) < start:
            return None
        lengths = parse_lengths(buffer, count, body_length, self._limits, HEADER_BYTES)
        end = start + body_length + sum(lengths)
        if len(buffer) < end:
            return None
        body = bytes(buffer[start : start + body_length])
        segments = []
        position = start + body_length
        for length in lengths:
            segments.append(bytes(buffer[position : position + length]))
            position += length
        del buffer[:end]
        return Frame(kind, call_id, body, segments)
