"""TLS sockets and BIO objects that pass no byte before our verifier has accepted.

The standard library lets a TLS object write before its handshake, change its context,
resume another handshake's session, and go on in the clear once its TLS layer was taken
off (`unwrap`, and `shutdown`, which does so silently). Each of these would carry
application bytes past the verdict, so each is refused here, for foreign libraries that
borrow a context as much as for our own connections.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from kubetls.errors import ContextRefused, KubeTLSError

if TYPE_CHECKING:
    from kubetls.identity.verify import VerifiedIdentity


class Judge(Protocol):
    """What the context of a guarded connection does besides TLS."""

    def judge(self, der: bytes | None, *, resumed: bool | None) -> VerifiedIdentity:
        """Return the verdict on a finished handshake, or raise."""
        ...


class _Guard:
    """What sockets and BIO objects share: nothing passes before the verdict."""

    _identity: VerifiedIdentity | None = None
    _owner = 0
    _context: Any
    _sslobj: Any

    @property
    def verified_identity(self) -> VerifiedIdentity | None:
        """The verdict on this very connection, None before it."""
        return self._identity

    def _accept(self, judge: Judge, der: bytes | None, *, resumed: bool | None) -> None:
        self._identity = judge.judge(der, resumed=resumed)
        self._owner = os.getpid()

    def _require_verdict(self) -> None:
        if self._identity is None:
            raise ContextRefused("ssl", "data before the server's identity is verified")
        if self._owner != os.getpid():
            # Parent and child would encrypt different bytes under one key and nonce.
            raise ContextRefused("ssl", "a TLS connection was carried over a fork")


class VerifiedSocket(_Guard, ssl.SSLSocket):
    """An SSLSocket that is useless until our verifier has accepted the server."""

    @property
    def context(self) -> Any:
        """The locked context; it stays."""
        return self._context

    @context.setter
    def context(self, _context: ssl.SSLContext) -> NoReturn:
        raise ContextRefused("ssl", "a connection's context is not exchanged")

    @property
    def session(self) -> ssl.SSLSession | None:
        """The TLS session, which no other connection may resume."""
        tls = self._sslobj
        return None if tls is None else tls.session

    @session.setter
    def session(self, _session: ssl.SSLSession | None) -> NoReturn:
        raise ContextRefused("ssl", "sessions are not resumed; identities are not")

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - theirs
        """Handshake, then judge; a refused server's socket is closed."""
        try:
            super().do_handshake(block)
            der = self.getpeercert(binary_form=True)
            self._accept(self._context, der, resumed=self.session_reused)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except BaseException:
            # Ctrl-C among them, for which the base class closes nothing.
            self.close()
            raise

    def read(self, *args: Any) -> Any:
        """Read application data."""
        self._require_verdict()
        return super().read(*args)

    def write(self, data: Any) -> int:
        """Write application data."""
        return self.send(data)

    def send(self, data: Any, flags: int = 0) -> int:
        """Write application data, encrypted or not at all.

        The base class falls back to the bare socket when there is no TLS layer.
        """
        self._require_verdict()
        tls = self._sslobj
        if tls is None:
            raise OSError(errno.EBADF, "the TLS connection is closed")
        if flags:
            raise ContextRefused("ssl", "send() takes no flags here")
        written: int = tls.write(data)
        return written

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Write all of it, as `send` does."""
        with memoryview(data) as view, view.cast("B") as octets:
            sent = 0
            while sent < len(octets):
                sent += self.send(octets[sent:], flags)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Write a file, as `send` does."""
        sent: int = self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined]
        return sent

    def sendto(self, *_: Any) -> NoReturn:
        """Refuse: datagrams have no TLS here."""
        raise ContextRefused("ssl", "sendto() would go around TLS")

    def shutdown(self, how: int) -> None:
        """Shut TCP down; unlike the base class, keep the TLS layer on it.

        Another thread may be about to send: it fails instead of sending in the clear.
        """
        socket.socket.shutdown(self, how)

    def unwrap(self) -> NoReturn:
        """Refuse: what follows would be in the clear."""
        raise ContextRefused("ssl", "TLS is not taken off a verified connection")


class VerifiedObject(_Guard, ssl.SSLObject):
    """The same for memory BIOs, the way asyncio, uvloop and trio do TLS."""

    _refused: str | None = None

    def refuse(self, reason: str) -> None:
        """Let the handshake fail before its first byte."""
        self._refused = reason

    @property
    def context(self) -> Any:
        """The locked context; it stays."""
        return self._sslobj.context

    @context.setter
    def context(self, _context: ssl.SSLContext) -> NoReturn:
        raise ContextRefused("ssl", "a connection's context is not exchanged")

    @property
    def session(self) -> ssl.SSLSession | None:
        """The TLS session, which no other connection may resume."""
        found: ssl.SSLSession | None = self._sslobj.session
        return found

    @session.setter
    def session(self, _session: ssl.SSLSession | None) -> NoReturn:
        raise ContextRefused("ssl", "sessions are not resumed; identities are not")

    def do_handshake(self) -> None:
        """Handshake, then judge.

        Raises:
            ssl.SSLCertVerificationError: The verifier refused. asyncio reports any
                other exception here as a fatal error of its own.
        """
        if self._refused is not None:
            raise ssl.SSLCertVerificationError(self._refused)
        super().do_handshake()
        refusal = None
        try:
            der = self.getpeercert(binary_form=True)
            self._accept(self.context, der, resumed=self.session_reused)
        except KubeTLSError as error:
            refusal = str(error)
        if refusal is not None:
            raise ssl.SSLCertVerificationError(refusal)

    def read(self, *args: Any) -> Any:
        """Read application data."""
        self._require_verdict()
        return super().read(*args)

    def write(self, data: Any) -> int:
        """Write application data; never handshakes implicitly."""
        self._require_verdict()
        return super().write(data)
