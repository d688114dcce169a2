"""The parent's listener: runners and their slots dial in here.

TLS 1.3 with a certificate that the runners pin. Handshake and first frame happen
off the accept thread, with deadlines and caps; before a peer has proved who it is,
nothing of it is unpickled and nothing of ours is changed.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from flame_backend.backends.kubernetes.peers import Peer, Peers
from flame_backend.backends.kubernetes.pin import listener_identity
from flame_backend.errors import ConfigurationError, LinkError, LinkUnauthenticated
from flame_backend.runner.dial import ALPN
from flame_backend.wire.frames import HELLO_LIMITS, Kind
from flame_backend.wire.link import Link

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection

logger = logging.getLogger("flame_backend.listener")

PROOF_SECONDS: Final = 5.0
"""For the handshake, and again for the first frame."""

BACKLOG: Final = 1024
"""A runner whose SYN finds no room tries again a whole second later."""

SWEEP_SECONDS: Final = 0.5
"""How often peers that ran out of time are looked for."""

JUDGE_SECONDS: Final = 30.0
"""For the requests to the API server that a token with all right claims costs."""


class Judge(Protocol):
    """Who decides about HELLO frames; see `Admission`."""

    def admit(
        self, hello: bytes, addresses: frozenset[str], take: Callable[[], bool]
    ) -> tuple[str, dict[str, Any]]:
        """Return runner and facts, or raise."""
        ...


class Listener:
    """Accepts runners and slots for one backend.

    Args:
        addresses: The pod's addresses.
        ports: Port to listen on, 0 for a free one; of several, the first that is free.
        admission: Judges HELLO frames.
        runner_connected: Called with runner, socket and HELLO facts of an admitted
            control link.
        slot_connected: Called with the ticket and the socket of a slot's connection.
        reserved: Returns the addresses that runners are expected from.
        proof_seconds: For the handshake, and again for the first frame.
    """

    def __init__(
        self,
        addresses: tuple[str, ...],
        ports: int | range,
        admission: Judge,
        runner_connected: Callable[[str, ssl.SSLSocket, dict[str, object]], None],
        slot_connected: Callable[[bytes, ssl.SSLSocket], None],
        *,
        reserved: Callable[[], Collection[str]] = frozenset,
        proof_seconds: float = PROOF_SECONDS,
    ) -> None:
        self._admission = admission
        self._runner_connected = runner_connected
        self._slot_connected = slot_connected
        self._proof_seconds = proof_seconds
        self.certificate, self._context = listener_identity(addresses)
        self._socket = _listening(addresses[0], ports)
        self._socket.settimeout(SWEEP_SECONDS)
        self.port = int(self._socket.getsockname()[1])
        self._peers = Peers(reserved)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._accept, name="flame-listener", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; connections that were handed on stay."""
        self._closed.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        self._peers.cut_all()

    def after_fork(self) -> None:
        """In a forked child: close the copies; not shut down, they are the parent's."""
        self._socket.close()
        self._peers.after_fork()

    def _accept(self) -> None:
        while not self._closed.is_set():
            self._peers.expire(time.monotonic())
            try:
                sock, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                # Out of descriptors: others are given time to close.
                self._closed.wait(0.05)
                continue
            try:
                self._welcome(sock)
            except (OSError, RuntimeError) as error:
                # It is gone already, or no thread can be had.
                logger.info("peer refused: %s", error)
                sock.close()

    def _welcome(self, sock: socket.socket) -> None:
        peer = Peer(sock, _address(sock), time.monotonic() + self._proof_seconds)
        thread = threading.Thread(
            target=self._serve, args=[peer], name="flame-peer", daemon=True
        )
        self._peers.add(peer)
        try:
            thread.start()
        except RuntimeError:
            self._peers.remove(peer)
            raise

    def _serve(self, peer: Peer) -> None:
        """Handshake, first frame, proof; in a thread of the peer's own."""
        try:
            tls = peer.wrap(self._context)
            tls.do_handshake()
            self._prove(peer, tls)
        except Exception as error:  # noqa: BLE001 - strangers and the API server: nothing may stop the listener
            # One answer for all: the connection ends. The reason is for our log.
            logger.info("peer refused: %s", error)
            peer.close()
        finally:
            self._peers.remove(peer)

    def _prove(self, peer: Peer, tls: ssl.SSLSocket) -> None:
        if tls.selected_alpn_protocol() != ALPN:
            msg = "another protocol"
            raise LinkUnauthenticated(msg)
        peer.deadline = time.monotonic() + self._proof_seconds
        link = Link(tls, HELLO_LIMITS)
        frame = link.receive()
        if link.buffered_bytes():
            msg = "more than a first frame"
            raise LinkUnauthenticated(msg)
        peer.deadline = time.monotonic() + JUDGE_SECONDS
        if frame.kind is Kind.TICKET:
            if not peer.take():
                msg = "cut meanwhile"
                raise LinkUnauthenticated(msg)
            self._slot_connected(bytes(frame.body), tls)
        elif frame.kind is Kind.HELLO:
            runner, facts = self._admission.admit(
                bytes(frame.body), frozenset({peer.address}), peer.take
            )
            self._runner_connected(runner, tls, facts)
        else:
            msg = f"{frame.kind.name} as first frame"
            raise LinkError(msg)


def _listening(address: str, ports: int | range) -> socket.socket:
    """Listen on the first port that is free.

    Raises:
        ConfigurationError: None is, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    failure = OSError("no port was named")
    for port in ports if isinstance(ports, range) else (ports,):
        try:
            return socket.create_server((address, port), family=family, backlog=BACKLOG)
        except OSError as error:
            failure = error
            if error.errno != errno.EADDRINUSE:
                break
    reason = f"cannot listen on {address}, {ports}: {failure.strerror or failure}"
    raise ConfigurationError("port", reason) from failure


def _address(sock: socket.socket) -> str:
    host = sock.getpeername()[0].partition("%")[0]
    mapped = getattr(ipaddress.ip_address(host), "ipv4_mapped", None)
    return str(mapped or host)
