"""Reads that expect their frame at any moment: they look for it before they sleep.

To sleep until a frame comes and to be woken takes as long as many a call, longer on a
virtual machine whose CPU was halted meanwhile. So a reader looks for some microseconds
first, unless it has reason to think that it would look in vain:

- On this link it did so lately. Calls may be long; then nearly all reads sleep at once.
- Somebody else wants the CPU, or the interpreter. Who looks instead of sleeping uses up
  its fair share, and then waits whole time slices for others, which is far worse than
  to be woken. A look that took too long tells; then no link of this process looks for
  a while.

Measured in docs/decisions/0009-looking-before-sleeping.md.
"""

from __future__ import annotations

import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

LOOK_SECONDS: Final = 50e-6
"""About what sleeping and being woken costs on both sides: never more than doubled."""

MOST_RESTS: Final = 256
"""Reads that sleep at once after looking was in vain time and again."""

DISTURBED_SECONDS: Final = 150e-6
"""Between two looks: this thread did not run, so others want to."""

QUIET_SECONDS: Final = (0.02, 0.25)
"""First and longest time without looking after that. The longest keeps what looking may
cost, a slice of 3 ms each time, near a hundredth."""

_LOOK: Final = getattr(socket, "MSG_DONTWAIT", 0)
_PEEK: Final = _LOOK | socket.MSG_PEEK
_clock: Final = time.perf_counter


class Disturbance:
    """What a process knows of others that want its CPU."""

    def __init__(self) -> None:
        self.until = 0.0
        self._seconds = QUIET_SECONDS[0]

    def noticed(self, now: float) -> None:
        """Let nobody look for a while; longer if it was so lately."""
        if now - self.until > QUIET_SECONDS[1]:
            self._seconds = QUIET_SECONDS[0]
        self.until = now + self._seconds
        self._seconds = min(2 * self._seconds, QUIET_SECONDS[1])


disturbance: Final = Disturbance()


class Lookout:
    """The eyes of one link.

    Args:
        sock: A connected, blocking socket or SSLSocket.
        receive: Returns what comes next, up to so many bytes; sleeps until it does.

    Attributes:
        rests: Reads that sleep at once before one looks again.
    """

    __slots__ = ("_look", "_pause", "_receive", "_sock", "rests")

    def __init__(self, sock: socket.socket, receive: Callable[[int], bytes]) -> None:
        self._sock = sock
        self._receive = receive
        self._look: Callable[[int, int], bytes] = (
            self._look_below if hasattr(sock, "read") else sock.recv
        )
        self._pause = 1
        # Where a look is not to be had, no read gets to the end of its rests.
        self.rests = 0 if _LOOK else -1

    def receive(self, size: int) -> bytes:
        """Return what comes next, b"" at the end; errors are the socket's."""
        if self.rests:
            self.rests -= 1
            return self._receive(size)
        last = _clock()
        if last < disturbance.until:
            return self._receive(size)
        look, ends = self._look, last + LOOK_SECONDS
        while True:
            try:
                data = look(size, _LOOK)
            except BlockingIOError:
                data = None
            now = _clock()
            if now - last > DISTURBED_SECONDS:
                disturbance.noticed(now)
                return self._receive(size) if data is None else data
            if data is not None:
                self._pause = 1
                return data
            if now > ends:
                break
            last = now
        self.rests = self._pause
        self._pause = min(2 * self._pause, MOST_RESTS)
        return self._receive(size)

    def _look_below(self, size: int, _: int) -> bytes:
        """Look whether anything has come for TLS to read; nothing of it is taken."""
        socket.socket.recv(self._sock, 1, _PEEK)
        return self._receive(size)
