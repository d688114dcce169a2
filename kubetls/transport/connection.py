"""The guarded connection: TCP, handshake, verdict, and only then a request.

urllib3 and http.client reach a server through `connect()` and `endheaders()` alone;
both are ours here. The bearer token is added to a request in the last moment, for a
`VerifiedPeer`: this very socket, verified by this very connection. A proof made by
`verify_identity` from a certificate alone unlocks nothing, as every cluster's API
server has the same names.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from urllib3.connection import HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from kubetls.errors import (
    ChainRefused,
    ContextRefused,
    IdentityMismatch,
    KubeTLSError,
)
from kubetls.identity.san import presented_identifiers
from kubetls.identity.verify import VerifiedIdentity, shown_entries, verify_identity
from kubetls.transport.probe import presented_certificate

if TYPE_CHECKING:
    from collections.abc import Callable

    from kubetls.credentials.endpoint import Endpoint
    from kubetls.transport.context import LockedContext
    from kubetls.transport.sockets import VerifiedSocket

# As Go's dialer: half-open connections behind NAT are found within three minutes.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 9))
SOCKET_OPTIONS: Final = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _KEEPALIVE
        if hasattr(socket, name)
    ),
]

# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_NAME_CODES: Final = frozenset({62, 64})

# The peer went away in the middle, which says nothing about who it is.
_GONE: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)

_PROBE_SECONDS: Final = 5.0

INTERIM_RESPONSES: Final = 5
"""Answers "100 Continue" that are skipped; as many as Go's client takes."""

TRAILER_FIELDS: Final = 100
"""Fields after a chunked body that are skipped; as many as headers may have."""

_LINE_BYTES: Final = 65536

_MINT: Final = object()


@dataclass(frozen=True, slots=True)
class VerifiedPeer:
    """This socket leads to that identity; minted by the connection only."""

    socket: VerifiedSocket
    identity: VerifiedIdentity
    _mint: object

    def __post_init__(self) -> None:
        if self._mint is not _MINT:
            msg = "a VerifiedPeer is minted by a connection only"
            raise TypeError(msg)


@dataclass(frozen=True, slots=True)
class Guard:
    """What a connection needs to know beyond HTTP.

    Attributes:
        endpoint: Whom it dials, and whom it insists on.
        context: The locked context.
        authorization: Gives the Authorization header's value for a verified peer, or
            None for sessions that authenticate by certificate or not at all.
    """

    endpoint: Endpoint
    context: LockedContext
    authorization: Callable[[VerifiedPeer], str | None]


class Lease:
    """One request's hold on a connection, from its choice out of the pool."""

    def __init__(self, connection: VerifiedConnection) -> None:
        self._connection = connection

    def interrupt(self) -> None:
        """From any thread: make the request's waiting end now.

        Does nothing once the connection serves another request. While TCP or TLS is
        being established, waiting ends when that is done or its timeout is up.
        """
        self._connection.interrupt(self)


class _BoundedResponse(http.client.HTTPResponse):
    """A response whose beginning and end are bounded; the library bounds the rest.

    It skips interim responses and trailer fields without counting, and as data keep
    arriving no timeout would ever end that. A chunk of less than nothing it reads to
    the end of the connection, into memory and past every limit.
    """

    _beginnings = 0

    def _read_status(self) -> Any:
        self._beginnings += 1
        if self._beginnings > INTERIM_RESPONSES + 1:
            msg = f"more than {INTERIM_RESPONSES} interim responses"
            raise http.client.HTTPException(msg)
        return super()._read_status()  # type: ignore[misc]  # not in typeshed

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]  # not in typeshed
        if size < 0:
            msg = "a chunk with a negative size"
            raise http.client.HTTPException(msg)
        return size

    def _read_and_discard_trailer(self) -> None:
        for _ in range(TRAILER_FIELDS + 1):
            line = self.fp.readline(_LINE_BYTES)
            if line in {b"\r\n", b"\n", b""}:
                return
        msg = f"more than {TRAILER_FIELDS} trailer fields"
        raise http.client.HTTPException(msg)


class VerifiedConnection(HTTPSConnection):
    """One connection to one API server."""

    response_class = _BoundedResponse

    def __init__(self, *args: Any, guard: Guard, **kwargs: Any) -> None:
        for name in (
            "assert_hostname",
            "assert_fingerprint",
            "proxy",
            "server_hostname",
        ):
            if kwargs.pop(name, None) is not None:
                raise ContextRefused("urllib3", f"{name} is not taken here")
        kwargs["socket_options"] = SOCKET_OPTIONS
        kwargs["ssl_context"] = guard.context
        super().__init__(*args, **kwargs)
        self._guard = guard
        self._peer: VerifiedPeer | None = None
        self._lock = threading.Lock()
        self._lease: Lease | None = None

    def lease(self) -> Lease:
        """Give the connection to one request; older leases can do nothing to it."""
        with self._lock:
            self._lease = Lease(self)
            return self._lease

    def interrupt(self, lease: Lease) -> None:
        """End what the holder of this lease is waiting for; see `Lease.interrupt`."""
        with self._lock:
            if lease is not self._lease:
                return
            self._lease = None
            # Once: the thread that reads may close the connection meanwhile.
            sock = self.sock
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    # http.client prints headers, the token among them, when this is set.
    @property
    def debuglevel(self) -> int:
        """Always 0."""
        return 0

    @debuglevel.setter
    def debuglevel(self, _level: int) -> None:
        return

    def set_debuglevel(self, level: int) -> None:
        """Do nothing: the debug output of http.client holds the token."""

    def set_tunnel(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: a tunnel's headers leave before the origin is verified."""
        raise ContextRefused("urllib3", "tunnels and proxies are not used here")

    def connect(self) -> None:
        """Dial, handshake, judge; the socket is ours only after the verdict.

        Raises:
            IdentityMismatch: The server is somebody else.
            CertificateError: Its certificate is refused.
            ChainRefused: OpenSSL refused the path or the handshake.
            urllib3.exceptions.NewConnectionError: No connection, or lost in the
                handshake: no byte of a request has left.
            urllib3.exceptions.ConnectTimeoutError: Either took too long.
        """
        self._peer = None
        raw = self._new_conn()
        try:
            tls = self._handshake(raw)
        except OSError as error:
            raw.close()
            raise self._why(error) from None
        except BaseException:
            raw.close()
            raise
        self.sock = tls
        self.is_verified = True
        self._peer = self._mint_peer(tls)

    def _handshake(self, raw: socket.socket) -> VerifiedSocket:
        tls = self._guard.context.wrap_socket(
            raw, server_hostname=self._guard.endpoint.reference.text
        )
        if tls.selected_alpn_protocol() not in {None, "http/1.1"}:
            tls.close()
            raise ContextRefused("ssl", "the server insists on another protocol")
        return tls

    def _mint_peer(self, tls: VerifiedSocket) -> VerifiedPeer:
        identity = tls.verified_identity
        if (
            identity is None
            or identity.reference != self._guard.endpoint.reference
            or tls.session_reused
            or tls.context is not self._guard.context
        ):
            tls.close()
            raise ContextRefused("ssl", "the connection has no verdict of its own")
        return VerifiedPeer(tls, identity, _MINT)

    def _why(self, error: OSError) -> Exception:
        """Return what to raise for a handshake that failed."""
        if isinstance(error, TimeoutError):
            return ConnectTimeoutError(self, "the TLS handshake took too long")
        if isinstance(error, _GONE):
            return NewConnectionError(self, "the server ended the TLS handshake")
        if isinstance(error, ssl.SSLError):
            return self._explained(error)
        return NewConnectionError(self, f"lost in the TLS handshake: {error}")

    def _explained(self, error: ssl.SSLError) -> KubeTLSError:
        """Say what the refused server presented.

        OpenSSL gives no certificate after a failed handshake, so the server is asked
        for it once more, without trust and without sending anything.
        """
        endpoint = self._guard.endpoint
        code = int(getattr(error, "verify_code", 0) or 0)
        reason = getattr(error, "verify_message", None) or error.reason or str(error)
        presented: tuple[str, ...] = ()
        der = presented_certificate(endpoint, _PROBE_SECONDS) if code else None
        if der is not None:
            try:
                presented = shown_entries(presented_identifiers(der))
                if code in _NAME_CODES:
                    verify_identity(der, endpoint.reference)
            except IdentityMismatch as mismatch:
                return mismatch
            except KubeTLSError as fault:
                return fault
        return ChainRefused(endpoint.reference.text, code, reason, presented)

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        """Finish the header; the token joins it for a verified peer only."""
        if self.sock is None:
            self.connect()
        if self._lease is None:
            self.close()
            raise NewConnectionError(self, "given up before the request was sent")
        peer = self._peer
        if peer is None or peer.socket is not self.sock:
            raise ContextRefused(
                "urllib3", "the socket is not the one that was verified"
            )
        value = self._guard.authorization(peer)
        if value is not None:
            self.putheader("Authorization", value)
            del value
        super().endheaders(*args, **kwargs)

    def close(self) -> None:
        """Close, and forget the verdict."""
        self._peer = None
        super().close()
