"""The agent's end of what slots print: to its own streams, and to the parent.

Every byte goes on to the agent's standard output or error, as if the slot had written
it there. The parent gets text with the id of its call, no more of it than a control
link carries beside heartbeats; of what is left out it gets the number of bytes and the
last lines. A terminal or log that takes nothing stops the slots, never the agent.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
import time
from contextlib import suppress

from flame_backend.wire.bucket import Bucket

CHUNK_BYTES: Final = 4096
"""What a pipe that is writable takes at once (PIPE_BUF)."""

TAIL_BYTES: Final = 4096
BURST_BYTES: Final = 256 * 1024
BYTES_PER_SECOND: Final = 64 * 1024.0
PAUSE_SECONDS: Final = 0.05
GATHER_SECONDS: Final = 0.1
"""How long the beginning of a line waits for its end."""

DRAIN_SECONDS: Final = 0.5
"""How long the end of a slot waits for a stream that takes nothing."""

CELL_BYTES: Final = 8
"""Of the shared memory that holds the id of the call that runs in a slot."""

MARK: Final = b"\0\0flame\0"
"""Stands, with an id behind it, where the output of a call ends."""

_MARK_BYTES: Final = len(MARK) + CELL_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    Send = Callable[[dict[str, Any]], None]


class _Stream:
    """Standard output or error of one slot."""

    __slots__ = ("call", "cell", "dropped", "held", "key", "number", "since", "text")

    def __init__(self, key: tuple[str, int], number: int, cell: mmap.mmap) -> None:
        self.key = key
        self.number = number
        self.cell = cell
        self.held = b""
        self.text = b""
        self.call = 0
        self.dropped = 0
        self.since = 0.0


class Pump:
    """Reads what all slots of an agent print.

    Args:
        poll: Of the agent.
        send: Sends facts to the parent.
    """

    def __init__(self, poll: select.poll, send: Send) -> None:
        self._poll = poll
        self._send = send
        self._streams: dict[int, _Stream] = {}
        self._paused: set[int] = set()
        self._broken: set[int] = set()
        self._allowed = Bucket(BURST_BYTES, BYTES_PER_SECOND)

    @property
    def descriptors(self) -> int:
        """How many it holds: one for each stream, one for the cell of each slot."""
        cells = {id(stream.cell) for stream in self._streams.values()}
        return len(self._streams) + len(cells)

    def add(self, runner: str, slot: int, reads: list[int], cell: int) -> None:
        """Read a slot's output from these descriptors."""
        memory = mmap.mmap(cell, CELL_BYTES, prot=mmap.PROT_READ)
        os.close(cell)
        for number, descriptor in enumerate(reads, start=1):
            os.set_blocking(descriptor, False)
            self._streams[descriptor] = _Stream((runner, slot), number, memory)
            self._poll.register(descriptor, select.POLLIN)

    def serve(self, ready: set[int]) -> None:
        """Move what can be moved."""
        for descriptor in self._paused & self._streams.keys():
            if _takes(self._streams[descriptor].number, 0):
                self._paused.discard(descriptor)
                self._poll.register(descriptor, select.POLLIN)
        for descriptor in sorted(ready & self._streams.keys()):
            stream = self._streams[descriptor]
            if stream.number in self._broken or _takes(stream.number, 0):
                self._move(descriptor, stream)
            else:
                self._poll.unregister(descriptor)
                self._paused.add(descriptor)

        now = time.monotonic()
        for stream in self._streams.values():
            if stream.text and now >= stream.since + GATHER_SECONDS:
                over = int.from_bytes(stream.cell[:], sys.byteorder) != stream.call
                if over or self._allowed.take(len(stream.text), now):
                    self._tell(stream)

    def wait(self) -> float:
        """Return the seconds after which `serve` is to be called in any case."""
        if self._paused or any(stream.text for stream in self._streams.values()):
            return PAUSE_SECONDS
        return 3600.0

    def drain(self, key: tuple[str, int] | None = None) -> None:
        """Move all that a slot that has ended has printed; None for all slots."""
        deadline = time.monotonic() + DRAIN_SECONDS
        for descriptor, stream in list(self._streams.items()):
            if key is not None and stream.key != key:
                continue
            while (left := deadline - time.monotonic()) > 0:
                free = stream.number in self._broken or _takes(stream.number, left)
                if not free or not self._move(descriptor, stream):
                    break
            self._tell(stream)

    def close(self) -> None:
        """Close what is still open."""
        for descriptor in list(self._streams):
            self._forget(descriptor)

    # ------------------------------------------------------------------ inside

    def _move(self, descriptor: int, stream: _Stream) -> bool:
        """Read once, and pass it on; False when there was nothing."""
        before = int.from_bytes(stream.cell[:], sys.byteorder)
        try:
            data = os.read(descriptor, CHUNK_BYTES - _MARK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._take(stream, stream.held, before)
            self._tell(stream)
            self._forget(descriptor)
            return False
        after = int.from_bytes(stream.cell[:], sys.byteorder)
        *marked, rest = (stream.held + data).split(MARK)
        stream.held = b""
        if marked:
            self._take_marked(stream, marked, rest, after)
        else:
            self._take_held(stream, rest, before or after)
        return True

    def _take_marked(
        self, stream: _Stream, marked: list[bytes], rest: bytes, call: int
    ) -> None:
        """Take what stands before each mark for the call that the mark names."""
        text = marked[0]
        for part in (*marked[1:], rest):
            if len(part) < CELL_BYTES:
                # The mark itself is cut: it counts with the next bytes.
                stream.held = text + MARK + part
                return
            self._take(stream, text, int.from_bytes(part[:CELL_BYTES], sys.byteorder))
            self._tell(stream)
            text = part[CELL_BYTES:]
        self._take_held(stream, text, call)

    def _take_held(self, stream: _Stream, text: bytes, call: int) -> None:
        """Take what is surely no beginning of a mark."""
        start = text.rfind(b"\0", -len(MARK))
        while start > 0 and text[start - 1 : start] == b"\0":
            start -= 1
        if start >= 0 and MARK.startswith(text[start:]):
            stream.held = text[start:]
            text = text[:start]
        self._take(stream, text, call)

    def _take(self, stream: _Stream, text: bytes, call: int) -> None:
        if not text:
            return
        if stream.number not in self._broken:
            self._pass_on(stream.number, text)
        if call != stream.call:
            self._tell(stream)
            stream.call = call
        if not stream.text:
            stream.since = time.monotonic()
        stream.text += text
        whole, newline, rest = stream.text.rpartition(b"\n")
        if len(rest) > TAIL_BYTES:
            whole, newline, rest = stream.text, b"", b""
        if not whole:
            return
        if self._allowed.take(len(whole), time.monotonic()):
            stream.text = whole + newline
            self._tell(stream)
            stream.text = rest
        elif len(stream.text) > TAIL_BYTES:
            stream.dropped += len(stream.text) - TAIL_BYTES
            stream.text = stream.text[-TAIL_BYTES:]

    def _pass_on(self, target: int, text: bytes) -> None:
        """Write to one of the agent's own streams."""
        view = memoryview(text)
        try:
            while view:
                view = view[os.write(target, view) :]
        except OSError:
            # Nobody reads it any more.
            self._broken.add(target)

    def _tell(self, stream: _Stream) -> None:
        """Send what has been gathered, whole lines or not."""
        text, stream.text = stream.text, b""
        dropped, stream.dropped = stream.dropped, 0
        if dropped:
            text = b"(%d bytes left out)\n%b" % (dropped, text)
        if text:
            runner, slot = stream.key
            self._send(
                {
                    "runner": runner,
                    "slot": slot,
                    "call": stream.call,
                    "text": text.decode("utf-8", "replace"),
                }
            )

    def _forget(self, descriptor: int) -> None:
        del self._streams[descriptor]
        if descriptor in self._paused:
            self._paused.discard(descriptor)
        else:
            with suppress(KeyError):
                self._poll.unregister(descriptor)
        os.close(descriptor)


def _takes(target: int, seconds: float) -> bool:
    """Tell whether a write of a few bytes would not block, or fail at once."""
    poll = select.poll()
    poll.register(target, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
