"""The parent's listener: runners and their slots dial in here.

TLS 1.3 with a self-signed certificate made for this process and pinned by the runners
through their environment; its key is never on a disk. Handshake and first frame happen
off the accept thread, with deadlines and caps; before a peer has proved who it is,
nothing of it is unpickled and nothing of ours is changed.
"""

from __future__ import annotations

import datetime as dt
import errno
import ipaddress
import logging
import os
import socket
import ssl
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from flame_backend.errors import ConfigurationError, LinkError, LinkUnauthenticated
from flame_backend.runner.dial import ALPN
from flame_backend.wire.frames import HELLO_LIMITS, Kind
from flame_backend.wire.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.backends.kubernetes.admission import Admission

logger = logging.getLogger("flame_backend.listener")

UNPROVED_PEERS: Final = 64
"""Peers between accept and proof; the oldest gives way, a newcomer never does."""

PROOF_SECONDS: Final = 5.0
"""For the handshake, and again for the first frame."""

CERTIFICATE_DAYS: Final = 3650
"""The certificate is a pin that dies with the process, not a date to watch."""


class Listener:
    """Accepts runners and slots for one backend.

    Args:
        addresses: The pod's addresses.
        ports: Port to listen on, 0 for a free one; of several, the first that is free.
        admission: Judges HELLO frames.
        runner_connected: Called with runner, socket and HELLO facts of an admitted
            control link.
        slot_connected: Called with the ticket and the socket of a slot's connection.
    """

    def __init__(
        self,
        addresses: tuple[str, ...],
        ports: int | range,
        admission: Admission,
        runner_connected: Callable[[str, ssl.SSLSocket, dict[str, object]], None],
        slot_connected: Callable[[bytes, ssl.SSLSocket], None],
    ) -> None:
        self._admission = admission
        self._runner_connected = runner_connected
        self._slot_connected = slot_connected
        self.certificate, self._context = _identity(addresses)
        self._socket = _listening(addresses[0], ports)
        self.port = int(self._socket.getsockname()[1])
        self._unproved: OrderedDict[int, socket.socket] = OrderedDict()
        self._lock = threading.Lock()
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
        self._socket.close()
        self._thread.join()
        with self._lock:
            waiting = list(self._unproved.values())
        for sock in waiting:
            _cut(sock)

    def after_fork(self) -> None:
        """In a forked child: close the copies; not shut down, they are the parent's."""
        self._socket.close()
        for sock in self._unproved.values():
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                if self._closed.wait(0.05):
                    return
                continue  # out of descriptors: others were given time to close
            self._make_room(sock)
            threading.Thread(
                target=self._serve, args=[sock], name="flame-peer", daemon=True
            ).start()

    def _make_room(self, sock: socket.socket) -> None:
        """Count a peer; when there are too many, the oldest is cut.

        Refusing newcomers instead would let a few silent peers keep runners out.
        """
        with self._lock:
            self._unproved[id(sock)] = sock
            evicted = None
            if len(self._unproved) > UNPROVED_PEERS:
                _, evicted = self._unproved.popitem(last=False)
        if evicted is not None:
            _cut(evicted)

    def _serve(self, sock: socket.socket) -> None:
        """Handshake, first frame, proof; in a thread of the peer's own."""
        tls: ssl.SSLSocket | None = None
        watchdog = threading.Timer(2 * PROOF_SECONDS, _cut, [sock])
        watchdog.daemon = True
        watchdog.start()
        try:
            sock.settimeout(PROOF_SECONDS)
            # Before the handshake: tickets and delayed ACKs cost 40 ms otherwise.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            peer = _address(sock)
            tls = self._context.wrap_socket(sock, server_side=True)
            self._prove(tls, peer)
        except Exception as error:  # noqa: BLE001 - strangers and the API server: nothing may stop the listener
            # One answer for all: the connection ends. The reason is for our log.
            logger.info("peer refused: %s", error)
            _cut(tls or sock)
        finally:
            watchdog.cancel()
            with self._lock:
                self._unproved.pop(id(sock), None)

    def _prove(self, tls: ssl.SSLSocket, peer: str) -> None:
        if tls.selected_alpn_protocol() != ALPN:
            msg = "another protocol"
            raise LinkUnauthenticated(msg)
        link = Link(tls, HELLO_LIMITS)
        frame = link.receive()
        if link.buffered_bytes():
            msg = "more than a first frame"
            raise LinkUnauthenticated(msg)
        if frame.kind is Kind.TICKET:
            tls.settimeout(None)
            self._slot_connected(bytes(frame.body), tls)
        elif frame.kind is Kind.HELLO:
            runner, facts = self._admission.admit(bytes(frame.body), frozenset({peer}))
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
            return socket.create_server((address, port), family=family, backlog=128)
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


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        sock.close()


def _identity(addresses: tuple[str, ...]) -> tuple[str, ssl.SSLContext]:
    """Make the certificate, PEM, and the server context that presents it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flame parent")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.IPAddress(ipaddress.ip_address(text)) for text in addresses]
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of nodes differ; the pin is what counts.
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(ski, critical=False)
        .add_extension(aki, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    password = os.urandom(32).hex().encode()
    sealed = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    return pem.decode(), _context(pem + sealed, password)


def _context(chain_and_key: bytes, password: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.set_alpn_protocols([ALPN])
    # load_cert_chain wants a path: memory that has one, and sealed all the same.
    descriptor = os.memfd_create("flame")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(chain_and_key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=password)
    finally:
        os.close(descriptor)
    return context
