"""Links of new local slots, each silent until its process has shown the slot's ticket.

A slot of this machine gets one end of a socket pair, passed over the control link, and
begins with the same frame as one that dials in: who shows no ticket has no link.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

from flame_backend.backends.loop import READ
from flame_backend.backends.tickets import TICKET_BYTES
from flame_backend.errors import MalformedFrame
from flame_backend.wire.frames import HEADER_BYTES, Kind, Limits, parse_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.backends.loop import Loop
    from flame_backend.backends.tickets import Tickets

    Slot = tuple[str, int]

_BYTES: Final = HEADER_BYTES + TICKET_BYTES
_LIMITS: Final = Limits(TICKET_BYTES)


class Greetings:
    """The links that wait for their first frame; used in the loop's thread.

    Args:
        loop: Watches them.
        tickets: Says whose a ticket is.
        greeted: Takes a slot and its socket, blocking again, once it has greeted.
    """

    def __init__(
        self,
        loop: Loop,
        tickets: Tickets,
        greeted: Callable[[Slot, socket.socket], None],
    ) -> None:
        self._loop = loop
        self._tickets = tickets
        self._greeted = greeted
        self._waiting: dict[Slot, socket.socket] = {}

    def begin(self, slot: Slot) -> int:
        """Wait for a slot's greeting; return the descriptor that it is to get.

        Raises:
            OSError: This process has no descriptors left.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._waiting[slot] = ours
        said = bytearray()
        self._loop.watch(ours, READ, lambda _: self._read(ours, slot, said))
        return theirs.detach()

    def end(self, slot: Slot) -> None:
        """Wait for it no longer; fine when nobody does."""
        sock = self._waiting.pop(slot, None)
        if sock is not None:
            self._loop.unwatch(sock)
            sock.close()

    def after_fork(self) -> None:
        """In a forked child: close the copies."""
        for sock in self._waiting.values():
            sock.close()

    def _read(self, sock: socket.socket, slot: Slot, said: bytearray) -> None:
        """Read the first frame, and not a byte more."""
        try:
            data = sock.recv(_BYTES - len(said))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        said += data
        if data and len(said) < _BYTES:
            return
        if data and self._claims(said, slot):
            self._loop.unwatch(sock)
            del self._waiting[slot]
            sock.setblocking(True)
            self._greeted(slot, sock)
        else:
            self.end(slot)

    def _claims(self, said: bytearray, slot: Slot) -> bool:
        try:
            kind, _, size, _ = parse_header(said, _LIMITS)
        except MalformedFrame:
            return False
        if kind is not Kind.TICKET or size != TICKET_BYTES:
            return False
        ticket = bytes(said[HEADER_BYTES:])
        return self._tickets.claim(ticket, time.monotonic()) == slot
