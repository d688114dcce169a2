"""The parent's end of one control link: bytes in both directions, and what they say.

Non-blocking; used by the hub's thread only. Works on a plain socket, over which it can
pass descriptors, and on a TLS socket.

Untrusted input: an agent may be compromised. `MalformedFrame` is the only error that
its frames cause; they are capped by the decoder, and all text in them is cleaned.
"""

from __future__ import annotations

import json
import math
import os
import socket
import ssl
import time
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

from flame_backend.backends.base import SlotEnd
from flame_backend.errors import LinkClosed, MalformedFrame
from flame_backend.wire.bucket import Bucket
from flame_backend.wire.frames import CONTROL_LIMITS, FrameDecoder, Kind
from flame_backend.wire.text import clean

LOG_CHARACTERS = 16 * 1024
"""More than an agent puts into one frame."""

BURST_BYTES = 4 * 1024 * 1024
BYTES_PER_SECOND = 512 * 1024.0
"""What a link may bring. An agent keeps what calls print to 64 KiB a second, which are
six times as many as JSON at the worst."""

CALL_NUMBERS = 2**64
"""A frame's header has eight bytes for a call's number."""

EXIT_CODES = 2**32

_READ_BYTES = 64 * 1024


class Report(NamedTuple):
    """What an agent said.

    Attributes:
        kind: HELLO, READY, FAILED, SLOT_ENDED, LOG, DRAIN or GOODBYE.
        facts: Its facts, checked for their types and cleaned.
    """

    kind: Kind
    facts: tuple[Any, ...]


class ControlLink:
    """One control link.

    Args:
        name: The agent's name in all events.
        sock: Connected; touched by the hub's thread only.
        process: A pidfd of the agent, or -1.
        passes: Whether slots get their descriptors through this link.
    """

    def __init__(
        self, name: str, sock: socket.socket, process: int, *, passes: bool
    ) -> None:
        self.name = name
        self.sock = sock
        self.process = process
        self.passes = passes
        self.slots: set[tuple[str, int]] = set()
        self.heard = time.monotonic()
        self.suspected = False
        self.expected = False
        self.farewell = ""
        self.ready = False
        self.paused = False
        self._allowed = Bucket(BURST_BYTES, BYTES_PER_SECOND)
        self._decoder = FrameDecoder(CONTROL_LIMITS)
        self._outgoing: deque[tuple[bytes, int]] = deque()

    def read(self) -> list[Report]:
        """Return what one read brings; nothing when there is nothing to read.

        Raises:
            BlockingIOError, ssl.SSLWantReadError: Nothing has arrived.
            OSError: The link broke.
            LinkClosed: The agent ended it.
            MalformedFrame: It said something that makes no sense.
        """
        data = self.sock.recv(_READ_BYTES)
        if not data:
            msg = "the control link ended"
            raise LinkClosed(msg)
        self.heard = time.monotonic()
        self._allowed.spend(len(data), self.heard)
        frames = self._decoder.feed(data)
        return [
            parsed(frame.kind, bytes(frame.body))
            for frame in frames
            if frame.kind is not Kind.PING
        ]

    def overdrawn(self) -> float:
        """Return the seconds until it may bring more, 0.0 for at once."""
        return self._allowed.spend(0, time.monotonic())

    def send(self, data: bytes, descriptor: int = -1) -> bool:
        """Queue and send; see `flush`."""
        self._outgoing.append((data, descriptor))
        return self.flush()

    def flush(self) -> bool:
        """Send what is queued; False when some of it has to wait.

        Raises:
            OSError: The link broke.
        """
        try:
            while self._outgoing:
                data, descriptor = self._outgoing[0]
                if descriptor >= 0:
                    sent = socket.send_fds(self.sock, [data], [descriptor])
                    os.close(descriptor)
                else:
                    sent = self.sock.send(data)
                self._outgoing.popleft()
                if sent < len(data):
                    self._outgoing.appendleft((data[sent:], -1))
        except (BlockingIOError, ssl.SSLWantWriteError):
            return False
        return True

    def close(self) -> None:
        """Close everything it owns, without a word to the peer."""
        for descriptor in [self.process, *(found for _, found in self._outgoing)]:
            if descriptor >= 0:
                os.close(descriptor)
        self.process = -1
        self._outgoing.clear()
        with suppress(OSError):
            self.sock.close()


def parsed(kind: Kind, body: bytes) -> Report:
    """Check one control frame's facts.

    Raises:
        MalformedFrame: They are not what an agent of this version writes.
    """
    try:
        return Report(kind, _facts(kind, json.loads(body)))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        msg = f"{kind.name} that an agent does not write"
        raise MalformedFrame(msg) from error


def _facts(kind: Kind, said: Any) -> tuple[Any, ...]:
    if kind is Kind.HELLO:
        return (said,) if isinstance(said, dict) else (said["?"],)
    if kind is Kind.READY:
        return ([(clean(name, 32), _seconds(took)) for name, took in said["phases"]],)
    if kind is Kind.FAILED:
        log = clean(said["traceback"], 64 * 1024)
        return clean(said["phase"], 32), clean(said["reason"], 1024), log
    if kind is Kind.SLOT_ENDED:
        code, number = _number(said["exit_code"]), _number(said["signal"])
        slot = said["slot"]
        if type(slot) is not int:
            raise TypeError
        detail = clean(said["detail"], 200)
        return (SlotEnd(clean(said["runner"], 253), slot, code, number, detail),)
    if kind is Kind.LOG:
        slot, call = said["slot"], said["call"]
        if type(slot) is not int or type(call) is not int:
            raise TypeError
        if not 0 <= call < CALL_NUMBERS:
            # Its digits stand before each line that is logged.
            raise ValueError
        return (
            clean(said["runner"], 253),
            slot,
            call,
            clean(said["text"], LOG_CHARACTERS),
        )
    if kind in {Kind.GOODBYE, Kind.DRAIN}:
        return (clean(said["reason"], 200),)
    raise ValueError


def _seconds(value: Any) -> float:
    took = float(value)
    if not math.isfinite(took):
        raise ValueError
    return took


def _number(value: object) -> int | None:
    """Check an exit code or a signal."""
    if value is None or (type(value) is int and abs(value) < EXIT_CODES):
        return value
    raise TypeError
