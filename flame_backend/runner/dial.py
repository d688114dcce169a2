"""Dial the parent: TLS 1.3 with its certificate pinned.

Three checks, all of them always: the certificate is the only trust anchor, it names
the address that was dialled, and it is byte for byte the one in FLAME_PARENT.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from flame_backend.errors import LinkUnauthenticated

if TYPE_CHECKING:
    import ssl

    from flame_backend.runner.parent import Parent

ALPN: Final = "flame/1"
CONNECT_SECONDS: Final = 10.0


def dial(parent: Parent) -> ssl.SSLSocket:
    """Connect to the first of the parent's addresses that answers.

    Raises:
        LinkUnauthenticated: Whoever answers is not the parent. Never tried again.
        OSError: No address answers, or the parent was too busy for a handshake.
    """
    failure: OSError = ConnectionError("no address of the parent is known")
    for address in parent.addresses:
        try:
            raw = socket.create_connection((address, parent.port), CONNECT_SECONDS)
            # Before the handshake: tickets and delayed ACKs would cost 40 ms later.
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _handshake(raw, address, parent)
        except OSError as error:
            failure = error
    raise failure


def _handshake(raw: socket.socket, address: str, parent: Parent) -> ssl.SSLSocket:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.hostname_checks_common_name = False
    context.load_verify_locations(cadata=parent.certificate)
    context.set_alpn_protocols([ALPN])
    try:
        tls = context.wrap_socket(raw, server_hostname=address)
    except ssl.SSLCertVerificationError as error:
        raw.close()
        msg = f"whoever answers at {address} is not the parent ({error.verify_message})"
        raise LinkUnauthenticated(msg) from error
    except OSError:
        # The parent ends strangers' connections when it has too many of them.
        raw.close()
        raise
    pinned = ssl.PEM_cert_to_DER_cert(parent.certificate)
    if tls.getpeercert(binary_form=True) != pinned:
        tls.close()
        msg = f"the certificate at {address} is not the parent's"
        raise LinkUnauthenticated(msg)
    tls.settimeout(None)
    return tls
