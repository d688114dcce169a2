"""Look at a certificate without trusting it: for error texts and explanations only.

The one place that handshakes without verification. It sends no application byte,
returns what the server presented, and closes; nothing here can write.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubetls.credentials.endpoint import Endpoint


def presented_certificate(endpoint: Endpoint, timeout: float) -> bytes | None:
    """Return the server's certificate as DER, None when none could be had.

    Args:
        endpoint: Whom to ask.
        timeout: Seconds for connecting and for each step of the handshake.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    address = (endpoint.address.text, endpoint.port)
    try:
        with (
            socket.create_connection(address, timeout) as raw,
            context.wrap_socket(raw, server_hostname=endpoint.reference.text) as tls,
        ):
            return tls.getpeercert(binary_form=True)
    except (OSError, ValueError):
        return None
