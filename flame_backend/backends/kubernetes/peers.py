"""Peers between accept and proof: how many, for how long, and who gives way.

Refusing newcomers when there are too many would let a few silent peers keep runners
out, so the oldest gives way. A few peers from each address that a runner is expected
from are spared as long as there are others: who floods from elsewhere cannot push a
runner out, and who floods from such an address only spares a few of his own.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from flame_backend.errors import LinkUnauthenticated

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection

UNPROVED_PEERS: Final = 64
SPARED_PEERS: Final = 8
"""Of one address: a control link and the first slots of a runner dial at once."""


class Peer:
    """One connection until it is taken over; whoever cuts it never closes it.

    A descriptor that one thread closes and another shuts down by its number could be
    a stranger's by then: only the peer's own thread closes.

    Args:
        sock: As accepted.
        address: Where it comes from.
        deadline: When it is cut, in monotonic seconds.
    """

    def __init__(self, sock: socket.socket, address: str, deadline: float) -> None:
        self.address = address
        self.deadline = deadline
        self._sock = sock
        self._lock = threading.Lock()
        self._cut = False
        self._settled = False
        # Before the handshake: tickets and delayed ACKs cost 40 ms otherwise.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def wrap(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Begin with TLS; no byte is read yet.

        Raises:
            LinkUnauthenticated: It was cut.
        """
        with self._lock:
            if self._cut:
                msg = "cut before its handshake"
                raise LinkUnauthenticated(msg)
            tls = context.wrap_socket(
                self._sock, server_side=True, do_handshake_on_connect=False
            )
            self._sock = tls
        return tls

    def cut(self) -> None:
        """Have its thread find the connection ended, whatever it waits for."""
        with self._lock:
            if self._settled or self._cut:
                return
            self._cut = True
            # The base class: SSLSocket.shutdown would take TLS off under its reader.
            with suppress(OSError):
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def take(self) -> bool:
        """Take it over, out of reach of `cut`; False when that was first."""
        with self._lock:
            self._settled = not self._cut
            return self._settled

    def close(self) -> None:
        """Close it; by its own thread."""
        with self._lock:
            self._settled = True
            self._sock.close()

    def close_copy(self) -> None:
        """Close it in a forked child, where no thread of it runs."""
        self._sock.close()


class Peers:
    """All peers of a listener that have not proved who they are.

    Args:
        reserved: Returns the addresses that runners are expected from.
    """

    def __init__(self, reserved: Callable[[], Collection[str]]) -> None:
        self._reserved = reserved
        self._lock = threading.Lock()
        # In the order in which they came.
        self._peers: dict[Peer, None] = {}

    def add(self, peer: Peer) -> None:
        """Count a newcomer; when there are too many, one is cut."""
        with self._lock:
            self._peers[peer] = None
            full = len(self._peers) > UNPROVED_PEERS
            waiting = list(self._peers) if full else []
        if full:
            found = self._who_gives_way(waiting)
            found.cut()
            self.remove(found)

    def _who_gives_way(self, waiting: list[Peer]) -> Peer:
        """Return the oldest that is not spared, else the oldest of all."""
        reserved = self._reserved()
        spared: dict[str, int] = dict.fromkeys(reserved, SPARED_PEERS)
        for peer in waiting:
            if not spared.get(peer.address):
                return peer
            spared[peer.address] -= 1
        return waiting[0]

    def remove(self, peer: Peer) -> None:
        """Forget one that was taken over, refused or cut."""
        with self._lock:
            self._peers.pop(peer, None)

    def expire(self, now: float) -> None:
        """Cut those whose time is up."""
        with self._lock:
            late = [peer for peer in self._peers if peer.deadline <= now]
        for peer in late:
            peer.cut()
            self.remove(peer)

    def cut_all(self) -> None:
        """Cut every one."""
        self.expire(float("inf"))

    def after_fork(self) -> None:
        """In a forked child: close the copies."""
        for peer in self._peers:
            peer.close_copy()
