"""The locked TLS context: our anchors, one reference, and no way to weaken either.

Python's SSLContext is an open object: HTTP libraries set `verify_mode`, switch
`check_hostname` off for their own matchers and load further CAs into it. A
`LockedContext` refuses every such change once it is sealed, compares its store with
the anchors before every use, and its socket classes (`sockets`) run our verifier inside
the handshake and pass no byte before it. So the same context is safe in foreign hands,
blocking or asyncio.

OpenSSL judges path, dates, usage and name; the verifier judges structure and name
again. Both must accept. Measured traps behind each line: `create_default_context`
accepts a common name, honours SSLKEYLOGFILE and differs between Python versions, so
the context is built by hand and is the same everywhere.
"""

from __future__ import annotations

import _ssl
import re
import ssl
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from kubetls.errors import ContextRefused, CredentialMalformed, CredentialMissing
from kubetls.identity.verify import VerifiedIdentity, verify_identity
from kubetls.transport.client_key import load_client_certificate
from kubetls.transport.sockets import VerifiedObject, VerifiedSocket

if TYPE_CHECKING:
    import socket

    from kubetls.credentials.anchors import TrustAnchors
    from kubetls.credentials.config import ClientCertificate
    from kubetls.identity.names import ReferenceId

ALPN_PROTOCOLS: Final = ("http/1.1",)

# How a folder of anchors names them: hash of the subject, and a number.
_HASHED: Final = re.compile(r"[0-9a-f]{8}\.[0-9]+\Z")

# SSL_OP_LEGACY_SERVER_CONNECT and SSL_OP_ALLOW_UNSAFE_LEGACY_RENEGOTIATION, which an
# OPENSSL_CONF can switch on for every context, and SSL_OP_IGNORE_UNEXPECTED_EOF, which
# would make a cut look like an end.
_LEGACY_OPTIONS: Final = 0x4 | 0x40000 | 0x80


def _require_stdlib() -> None:
    """Refuse to build on a replaced `ssl.SSLContext` (truststore, gevent and others).

    A context class that forwards to another object would be asked in our place, and
    its store and its verdicts are not ours.
    """
    base = LockedContext.__mro__[1]
    if (
        base.__module__ != "ssl"
        or _ssl._SSLContext not in base.__bases__
        or ssl.SSLContext is not base
    ):
        reason = (
            f"ssl.SSLContext was replaced by {base.__module__}.{base.__qualname__}; "
            "undo the injection (truststore.inject_into_ssl, gevent.monkey) or import "
            "kubetls before it and do without it"
        )
        raise ContextRefused("ssl", reason)


class LockedContext(ssl.SSLContext):
    """A client context for one reference identifier; built by `locked_context`.

    Attributes:
        reference: The only identity connections of this context may have.
    """

    sslsocket_class = VerifiedSocket
    sslobject_class = VerifiedObject

    reference: ReferenceId
    _accepted: frozenset[str]
    _state: tuple[Any, ...]
    _sealed: bool

    def _seal(self, reference: ReferenceId, accepted: frozenset[str]) -> None:
        self.reference = reference
        self._accepted = accepted
        self._state = self._state_now()
        self._sealed = True

    def _state_now(self) -> tuple[Any, ...]:
        # get_ca_certs leaves out anchors that are no CA; the counts hold those. Sorted:
        # OpenSSL sorts its store by subject with the first search in it.
        stats = self.cert_store_stats()
        return (
            (self.options, self.verify_flags, self.security_level),
            (self.minimum_version, self.maximum_version, self.keylog_filename),
            (stats["x509"], stats["crl"]),
            tuple(sorted(self.get_ca_certs(binary_form=True))),
        )

    def check_unchanged(self) -> None:
        """Refuse when other code reached around the lock.

        Raises:
            ContextRefused: A setting or the store is not what was sealed.
        """
        if (
            type(self) is not LockedContext
            or self.verify_mode is not ssl.CERT_REQUIRED
            or not self.check_hostname
            or self.hostname_checks_common_name
            or self.minimum_version < ssl.TLSVersion.TLSv1_2
            or self.sslsocket_class is not VerifiedSocket
            or self.sslobject_class is not VerifiedObject
            or self._state_now() != self._state
        ):
            raise ContextRefused("ssl", "the locked context was changed by other code")

    def judge(self, der: bytes | None, *, resumed: bool | None) -> VerifiedIdentity:
        """Run our verifier; called in the handshake, when OpenSSL has accepted.

        Args:
            der: The server's certificate.
            resumed: Whether the handshake resumed a session.

        Raises:
            ContextRefused: A session was resumed: it carries another handshake's
                certificate; or the context was changed.
            IdentityMismatch, CertificateError: The verifier refuses.
        """
        self.check_unchanged()
        if resumed:
            raise ContextRefused("ssl", "a session was resumed; identities are not")
        return verify_identity(der or b"", self.reference)

    # ------------------------------------------------------------------ use

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> VerifiedSocket:
        """Connect a socket: handshake now, as a client, for our reference only."""
        if not do_handshake_on_connect:
            raise ContextRefused("ssl", "a deferred handshake would skip the verifier")
        self._require_client(session, server_side=server_side)
        if not self._is_ours(server_hostname):
            raise ContextRefused("ssl", self._only_ours())
        wrapped = super().wrap_socket(
            sock,
            suppress_ragged_eofs=suppress_ragged_eofs,
            server_hostname=self.reference.text,
        )
        if not isinstance(wrapped, VerifiedSocket):
            wrapped.close()
            raise ContextRefused("ssl", "the socket class was exchanged")
        return wrapped

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Make a TLS object over memory, as `wrap_socket` for sockets.

        For another name its handshake fails, before the first byte: event loops lose
        the connection beneath when this call raises.
        """
        self._require_client(session, server_side=server_side)
        wrapped = super().wrap_bio(
            incoming, outgoing, server_hostname=self.reference.text
        )
        if not isinstance(wrapped, VerifiedObject):
            raise ContextRefused("ssl", "the object class was exchanged")
        if not self._is_ours(server_hostname):
            wrapped.refuse(self._only_ours())
        return wrapped

    def _require_client(
        self, session: ssl.SSLSession | None, *, server_side: bool
    ) -> None:
        self.check_unchanged()
        if server_side:
            raise ContextRefused("ssl", "this context is for clients")
        if session is not None:
            raise ContextRefused("ssl", "sessions are not resumed; identities are not")

    def _is_ours(self, server_hostname: str | bytes | None) -> bool:
        name = server_hostname
        if isinstance(name, bytes):
            name = name.decode("ascii", "replace")
        return name is not None and name.lower() in self._accepted

    def _only_ours(self) -> str:
        return f"this context is for {self.reference.text} only"

    # ------------------------------------------------------------------ the lock

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse every change once sealed; setting what is there is no change."""
        if getattr(self, "_sealed", False):
            if name in {"sslsocket_class", "sslobject_class"} or (
                getattr(self, name, _ABSENT) != value
            ):
                raise ContextRefused(
                    "ssl", f"{name} of a locked context is not changed"
                )
            return
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise ContextRefused("ssl", f"{name} of a locked context is not deleted")

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        """Accept a repetition of what is set; libraries call this on every connect."""
        if getattr(self, "_sealed", False):
            if "http/1.1" not in tuple(alpn_protocols):
                raise ContextRefused("ssl", "only http/1.1 is spoken here")
            return
        super().set_alpn_protocols(alpn_protocols)

    def load_verify_locations(self, *args: Any, **kwargs: Any) -> None:
        """Load anchors; refused once sealed."""
        self._unless_sealed()
        super().load_verify_locations(*args, **kwargs)

    def load_cert_chain(self, *args: Any, **kwargs: Any) -> None:
        """Load a client certificate; refused once sealed."""
        self._unless_sealed()
        super().load_cert_chain(*args, **kwargs)

    def load_default_certs(self, *args: Any, **kwargs: Any) -> None:
        """Load the system's anchors; refused once sealed."""
        self._unless_sealed()
        super().load_default_certs(*args, **kwargs)

    def set_default_verify_paths(self) -> None:
        """Load the system's anchors; refused once sealed."""
        self._unless_sealed()
        super().set_default_verify_paths()

    def set_ciphers(self, cipherlist: str, /) -> None:
        """Choose cipher suites; refused once sealed."""
        self._unless_sealed()
        super().set_ciphers(cipherlist)

    def set_psk_client_callback(self, *_: Any) -> NoReturn:
        """Refuse: a pre-shared key takes the certificate's place (Python 3.13)."""
        raise ContextRefused("ssl", "servers prove themselves by certificate only")

    def _unless_sealed(self) -> None:
        if getattr(self, "_sealed", False):
            reason = "a locked context takes no further anchors, keys or ciphers"
            raise ContextRefused("ssl", reason)

    def __reduce__(self) -> NoReturn:
        """Refuse: a context is made where it is used."""
        msg = "a locked context is not pickled"
        raise TypeError(msg)


_ABSENT: Final = object()

_require_stdlib()


def locked_context(
    anchors: TrustAnchors,
    reference: ReferenceId,
    *,
    address: ReferenceId | None = None,
    client_certificate: ClientCertificate | None = None,
    strict_x509: bool = False,
) -> LockedContext:
    """Build and seal a context.

    Args:
        anchors: The only trust anchors; the system's store is loaded only for
            anchors that say so.
        reference: Identity that every connection must have.
        address: Also accepted as `server_hostname` from foreign libraries, and
            replaced by the reference (kubeconfig's tls-server-name).
        client_certificate: Sent after OpenSSL's verdict and before ours, which is a
            property of TLS; it holds nothing secret but the client's name.
        strict_x509: Also demand the profile details of VERIFY_X509_STRICT, which
            many clusters' own CAs lack. Off by default on every Python version.

    Raises:
        ContextRefused: ssl was tampered with.
        CredentialMalformed: The anchors or the client certificate do not load.
    """
    _require_stdlib()
    if not ssl.HAS_NEVER_CHECK_COMMON_NAME:
        raise ContextRefused("ssl", "this TLS library cannot stop reading common names")
    context = LockedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    context.hostname_checks_common_name = False
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options &= ~_LEGACY_OPTIONS
    flags = context.verify_flags | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    if strict_x509:
        flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    context.verify_flags = flags
    context.set_alpn_protocols(ALPN_PROTOCOLS)
    _load_anchors(context, anchors)
    if client_certificate is not None:
        load_client_certificate(context, client_certificate)
    accepted = frozenset({reference.text, (address or reference).text})
    context._seal(reference, accepted)
    return context


def _load_anchors(context: LockedContext, anchors: TrustAnchors) -> None:
    if anchors.system:
        _load_system_anchors(context)
        return
    try:
        context.load_verify_locations(cadata=b"".join(anchors.certificates))
    except ssl.SSLError as error:
        reason = f"OpenSSL does not load it ({error.reason})"
        raise CredentialMalformed("CA bundle", reason) from None
    if context.cert_store_stats()["x509"] != len(anchors.certificates):
        raise CredentialMalformed("CA bundle", "OpenSSL did not load all certificates")


def _load_system_anchors(context: LockedContext) -> None:
    """Load the whole of the operating system's store, now.

    OpenSSL reads the folder when a server asks for one of its anchors, which is no
    different from other code that adds one.
    """
    paths = ssl.get_default_verify_paths()
    files = [Path(paths.cafile)] if paths.cafile else []
    if paths.capath:
        found = Path(paths.capath).iterdir()
        files += sorted(file for file in found if _HASHED.match(file.name))
    for file in files:
        # As OpenSSL has it: what does not load there anchors nothing.
        with suppress(OSError):
            context.load_verify_locations(cafile=file)
    if not context.cert_store_stats()["x509"]:
        raise CredentialMissing("the operating system's store", "holds no certificate")
