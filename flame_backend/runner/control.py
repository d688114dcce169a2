"""The agent's end of its control link, over an inherited descriptor or over TLS.

Non-blocking reads, bounded writes. Descriptors of new slots arrive beside the bytes of
the frames that announce them, in the same order.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress

from flame_backend.runner.parent import PROTOCOL_VERSION
from flame_backend.version import VERSION
from flame_backend.wire.frames import WELCOME_LIMITS, FrameDecoder, Kind, pack_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from flame_backend.runner.parent import Parent
    from flame_backend.wire.frames import Frame

TOKEN_BYTES: Final = 12 * 1024
"""HELLO is capped at 16 KiB; bound tokens have 1 to 2."""

SEND_SECONDS: Final = 5.0
"""Control frames are small; a parent that takes none for so long has hung."""

_READ_BYTES: Final = 64 * 1024
_DESCRIPTORS: Final = 16


class Control:
    """The control link of one agent."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._passes = parent.transport == "fd"
        self._sock: Any = None
        self._decoder = FrameDecoder(WELCOME_LIMITS)
        self.descriptors: deque[int] = deque()
        self.heard = time.monotonic()
        self.ended = True

    def connect(self) -> None:
        """Open the link and say HELLO.

        Raises:
            LinkUnauthenticated: Whoever answers is not the parent.
            OSError: The parent cannot be reached, or the token not be read.
        """
        if self._passes:
            self._sock = socket.socket(fileno=self._parent.fd)
            self._sock.set_inheritable(False)
        else:
            from flame_backend.runner.dial import dial

            self._sock = dial(self._parent)
        self._decoder = FrameDecoder(WELCOME_LIMITS)
        self.heard = time.monotonic()
        self.ended = False
        self._sock.sendall(pack_frame(Kind.HELLO, _hello(self._parent)))
        self._sock.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        descriptor: int = self._sock.fileno()
        return descriptor

    def receive(self) -> list[Frame]:
        """Return the frames that have arrived; sets `ended` when no more will.

        Raises:
            MalformedFrame: The parent's bytes make no sense.
        """
        frames: list[Frame] = []
        while not self.ended:
            try:
                data = self._read()
            except OSError as error:
                if _again(error):
                    break
                data = b""
            self.ended = not data
            self.heard = time.monotonic()
            frames += self._decoder.feed(data)
        return frames

    def _read(self) -> bytes:
        if not self._passes:
            data: bytes = self._sock.recv(_READ_BYTES)
            return data
        data, found, _, _ = socket.recv_fds(self._sock, _READ_BYTES, _DESCRIPTORS)
        for descriptor in found:
            # They arrive inheritable; user code starts programs.
            os.set_inheritable(descriptor, False)
        self.descriptors += found
        return data

    def send(self, kind: Kind, facts: dict[str, Any] | None = None) -> None:
        """Send a small frame, waiting a little if need be; sets `ended` on failure.

        A no-op once the link has ended.
        """
        body = b"" if facts is None else json.dumps(facts).encode()
        self.send_frame(kind, body)

    def send_frame(self, kind: Kind, body: bytes) -> None:
        """Send a frame of the zygote's as it is."""
        view = memoryview(pack_frame(kind, body))
        deadline = time.monotonic() + SEND_SECONDS
        while view and not self.ended:
            try:
                view = view[self._sock.send(view) :]
            except OSError as error:
                if not _again(error) or time.monotonic() > deadline:
                    self.ended = True
                    return
                select.select([], [self._sock], [], 0.1)

    def close(self) -> None:
        """Close the link."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self.ended = True
        if self._sock is not None:
            with suppress(OSError):
                self._sock.close()


def _again(error: OSError) -> bool:
    # ssl's want-read and want-write are OSErrors without being BlockingIOErrors, and
    # ssl is not imported where it is not used.
    return error.errno in {errno.EAGAIN, errno.EINTR} or "Want" in type(error).__name__


def _hello(parent: Parent) -> bytes:
    version = sys.version_info
    facts = {
        "v": PROTOCOL_VERSION,
        "package": VERSION,
        "runner": parent.runner,
        "python": f"{sys.implementation.name}-{version[0]}.{version[1]}",
        "pid": os.getpid(),
    }
    if parent.token_path:
        # Read at each attempt: the kubelet renews it.
        with open(parent.token_path, "rb") as file:  # noqa: PTH123 - pathlib is not loaded before HELLO
            token = file.read(TOKEN_BYTES + 1)
        if len(token) > TOKEN_BYTES:
            msg = f"the token has more than {TOKEN_BYTES} bytes"
            raise OSError(msg)
        facts["token"] = token.decode("ascii", "replace").strip()
    return json.dumps(facts).encode()
