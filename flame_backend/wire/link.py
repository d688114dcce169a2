"""One connection between parent and runner: blocking, one thread at a time.

The thread that makes a call writes its request and reads the reply here itself; no
other thread touches the socket object meanwhile (two threads in one SSLSocket crash
the interpreter). The one thing another thread may do is `shutdown`, which acts on the
descriptor below any TLS and makes a blocked read end.

Knows frames and sockets, neither codecs nor calls. A TLS socket is used through the
same methods as a plain one, so this module never imports ssl.
"""

from __future__ import annotations

import io
import os
import socket
from contextlib import suppress

from flame_backend.errors import LinkClosed, LinkError, MalformedFrame
from flame_backend.wire.frames import (
    HEADER,
    HEADER_BYTES,
    LENGTH_BYTES,
    Frame,
    Kind,
    Limits,
    pack_head,
    parse_header,
    parse_lengths,
)
from flame_backend.wire.lookout import Lookout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

    Buffer = bytes | bytearray | memoryview

SMALL_BYTES: Final = 16 * 1024 - HEADER_BYTES
"""Header and body up to this size leave in one write, so in one TLS record."""

SMALL_READ_BYTES: Final = 4096
"""The first read for a frame that is expected to be small."""

READ_BYTES: Final = 64 * 1024
"""Buffered read; TLS hands out at most one record of 16 KiB for each call."""

_NOTHING: Final = bytearray()
_ENDED: Final = "the peer ended the connection"

_pack: Final = HEADER.pack
_unpack_from: Final = HEADER.unpack_from

STEP_BYTES: Final = 1024 * 1024
"""Memory taken ahead of what has arrived: a lying length costs the peer its bytes."""


class Link:
    """Frames over a connected stream socket.

    Args:
        sock: A connected, blocking socket or SSLSocket; the link owns it.
        limits: What this end takes; frames that break them are `MalformedFrame`.
    """

    __slots__ = (
        "_buffer",
        "_end",
        "_lookout",
        "_read",
        "_send",
        "_start",
        "_view",
        "_write",
        "limits",
        "sock",
    )

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self.sock = sock
        self.limits = limits
        self._buffer = _NOTHING
        self._view = memoryview(_NOTHING)
        self._start = 0
        self._end = 0
        self._read = sock.recv_into
        self._write = sock.sendall
        # The same without a detour, where TLS has one: a few microseconds each.
        self._lookout = Lookout(sock, getattr(sock, "read", sock.recv))
        self._send: Callable[[bytes], Any] = (
            self._write_record if hasattr(sock, "write") else sock.sendall
        )

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self.sock.fileno()

    # ------------------------------------------------------------------ sending

    def send(
        self,
        kind: int,
        call_id: int = 0,
        body: Buffer = b"",
        segments: Sequence[Buffer] = (),
    ) -> None:
        """Write one frame; small ones in a single write, large buffers uncopied.

        Raises:
            LinkClosed: The peer is gone.
            LinkError: The socket failed otherwise.
        """
        length = len(body)
        try:
            if not segments and length <= SMALL_BYTES:
                self._send(_pack(kind, 0, 0, length, call_id) + body)
                return
            lengths = [memoryview(part).nbytes for part in segments]
            head = pack_head(kind, call_id, length, lengths)
            if length <= SMALL_BYTES:
                self._write(head + body)
            else:
                self._write(head)
                self._write(body)
            for part in segments:
                self._write(memoryview(part).cast("B"))
        except OSError as error:
            raise _translated(error) from error

    def send_parts(self, kind: int, call_id: int, parts: Sequence[bytes]) -> None:
        """Write one frame whose body is these parts, without joining large ones.

        Raises:
            LinkClosed: The peer is gone.
            LinkError: The socket failed otherwise.
        """
        try:
            if len(parts) == 1 and (length := len(parts[0])) <= SMALL_BYTES:
                self._send(_pack(kind, 0, 0, length, call_id) + parts[0])
                return
            pending = _pack(kind, 0, 0, sum(map(len, parts)), call_id)
            for part in parts:
                if len(pending) + len(part) <= SMALL_BYTES:
                    pending += part
                    continue
                if pending:
                    self._write(pending)
                pending = b""
                self._write(part)
            if pending:
                self._write(pending)
        except OSError as error:
            raise _translated(error) from error

    def _write_record(self, data: bytes) -> None:
        """Write what fits into one TLS record, unless the peer wants smaller ones."""
        sent = self.sock.write(data)  # type: ignore[attr-defined]
        if sent < len(data):
            self.sock.sendall(data[sent:])

    # ------------------------------------------------------------------ receiving

    def receive(self) -> Frame:
        """Read one frame; blocks until it is complete.

        Raises:
            LinkClosed: The peer ended the connection, also in the middle of a frame.
            MalformedFrame: The frame breaks a rule or a limit.
        """
        if self._end - self._start < HEADER_BYTES:
            self._fill(HEADER_BYTES)
        kind, count, length, call_id = parse_header(
            self._buffer, self.limits, self._start
        )
        self._start += HEADER_BYTES
        if not count:
            return Frame(kind, call_id, self._take(length))
        table = self._take(LENGTH_BYTES * count)
        lengths = parse_lengths(table, count, length, self.limits)
        body = self._take(length)
        return Frame(kind, call_id, body, [self._take(size) for size in lengths])

    def receive_small(self, kind: int) -> tuple[int, bytes] | None:
        """Return call id and body of a frame that comes alone, whole and small.

        The short way of nearly every call and reply. None for anything else: then
        nothing is taken, and `receive` will.

        Raises:
            LinkClosed: The peer ended the connection.
        """
        if self._start != self._end:
            return None
        try:
            data = self._lookout.receive(SMALL_READ_BYTES)
        except OSError as error:
            raise _translated(error) from error
        length = len(data) - HEADER_BYTES
        if length >= 0:
            found, flags, count, size, call_id = _unpack_from(data)
            if (
                found == kind
                and size == length <= self.limits.body_bytes
                and not (flags or count)
            ):
                return call_id, data[HEADER_BYTES:]
        elif not data:
            raise LinkClosed(_ENDED)
        self._allocate()
        self._start, self._end = 0, len(data)
        self._buffer[: self._end] = data
        return None

    def receive_call(self) -> tuple[Kind, int, bytes | Body]:
        """Read one frame without segments; a large body is left to be read.

        For the end that obeys: a runner unpickles its parent's calls straight from
        the link. The `Body` must be finished before the next frame is read.
        """
        if self._end - self._start < HEADER_BYTES:
            self._fill(HEADER_BYTES)
        kind, count, length, call_id = parse_header(
            self._buffer, self.limits, self._start
        )
        self._start += HEADER_BYTES
        if count:
            msg = f"{kind.name} with segments"
            raise MalformedFrame(msg)
        if length <= READ_BYTES // 2:
            return kind, call_id, self._take(length)
        return kind, call_id, Body(self, length)

    def buffered_bytes(self) -> int:
        """Return bytes that were read and belong to no returned frame."""
        return self._end - self._start

    def release(self) -> None:
        """Give the buffer back if nothing is in it: links are idle most of the time."""
        if self._start == self._end:
            self._buffer = _NOTHING
            self._view = memoryview(_NOTHING)
            self._start = self._end = 0

    def _allocate(self) -> None:
        if not self._buffer:
            self._buffer = bytearray(READ_BYTES)
            self._view = memoryview(self._buffer)

    def _fill(self, wanted: int) -> None:
        """Make at least `wanted` bytes available in the buffer."""
        self._allocate()
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + wanted > READ_BYTES:
            rest = self._end - self._start
            self._buffer[:rest] = self._buffer[self._start : self._end]
            self._start, self._end = 0, rest
        while self._end - self._start < wanted:
            self._end += self._receive_into(self._view[self._end :])

    def _take(self, size: int) -> bytes:
        """Return the next `size` bytes as real bytes, without a second copy."""
        start, have = self._start, self._end - self._start
        if size > have and size <= READ_BYTES // 2:
            self._fill(size)
            start, have = self._start, self._end - self._start
        if size <= have:
            self._start = start + size
            return self._view[start : start + size].tobytes()
        return self._take_large(size)

    def _take_large(self, size: int) -> bytes:
        # BytesIO hands out its buffer as bytes without a copy when it is exactly
        # full. It grows by steps while bytes arrive, then to the full size at once:
        # a peer that has sent a step's worth is no longer only claiming a length.
        target = io.BytesIO()
        have = self._end - self._start
        target.write(self._view[self._start : self._end])
        self._start = self._end = 0
        done = have
        while done < size:
            allocated = min(size, STEP_BYTES if done < STEP_BYTES else size)
            target.truncate(allocated)
            target.seek(allocated - 1)
            target.write(b"\0")
            with target.getbuffer() as view:
                while done < allocated:
                    done += self._receive_into(view[done:allocated])
        return target.getvalue()

    def _take_into(self, view: memoryview) -> None:
        """Fill a buffer: what is buffered first, then straight from the socket."""
        have = min(self._end - self._start, len(view))
        view[:have] = self._view[self._start : self._start + have]
        self._start += have
        while have < len(view):
            have += self._receive_into(view[have:])

    def _receive_into(self, view: memoryview) -> int:
        try:
            count = self._read(view)
        except OSError as error:
            raise _translated(error) from error
        if not count:
            raise LinkClosed(_ENDED)
        return count

    # ------------------------------------------------------------------ ending

    def shutdown(self) -> None:
        """Make reads and writes end; the only method another thread may call."""
        # A duplicate of the descriptor, seen as a plain socket: SSLSocket.shutdown
        # would touch the TLS state that the reading thread is using.
        with suppress(OSError):
            plain = socket.socket(fileno=os.dup(self.sock.fileno()))
            with plain:
                plain.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        with suppress(OSError):
            self.sock.close()


class Body:
    """The unread body of a frame, as the file that an unpickler wants."""

    __slots__ = ("_left", "_link")

    def __init__(self, link: Link, length: int) -> None:
        self._link = link
        self._left = length

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, all that are left by default."""
        size = self._left if size < 0 else min(size, self._left)
        self._left -= size
        return self._link._take(size)  # noqa: SLF001 - the other half of Link

    def readline(self) -> bytes:
        """Return bytes up to a newline; protocol 5 hardly ever asks."""
        line = b""
        while not line.endswith(b"\n") and self._left:
            line += self.read(1)
        return line

    def readinto(self, target: bytearray | memoryview) -> int:
        """Fill a buffer from the link, without a copy in between."""
        view = memoryview(target).cast("B")[: self._left]
        self._left -= len(view)
        self._link._take_into(view)  # noqa: SLF001 - as above
        return len(view)

    def finish(self) -> None:
        """Read and drop what is left, so that the next frame can be read."""
        while self._left:
            self.read(min(self._left, STEP_BYTES))


def _translated(error: OSError) -> LinkError:
    gone = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)
    if isinstance(error, gone) or "EOF occurred" in str(error):
        return LinkClosed(f"the peer ended the connection ({error})")
    return LinkError(f"the connection failed ({error})")
