"""Look at a certificate without trusting it: for error texts and explanations only.

The one place that handshakes without verification. It sends no application byte,
returns what the server presented, and closes; nothing here can write.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kubetls.credentials.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Probed:
    """What was seen of a server.

    Attributes:
        certificate: Its certificate, DER; None when none could be had.
        failed: Where it ended in that case: the name is unknown, nothing listens, or
            TLS failed.
        reason: Why, in a few words.
    """

    certificate: bytes | None
    failed: Literal["name", "tcp", "tls"] | None = None
    reason: str = ""


def presented_certificate(endpoint: Endpoint, timeout: float) -> bytes | None:
    """Return the server's certificate as DER, None when none could be had."""
    return probe(endpoint, timeout).certificate


def probe(endpoint: Endpoint, timeout: float) -> Probed:
    """Ask a server for its certificate.

    Args:
        endpoint: Whom to ask, and by which name.
        timeout: Seconds for connecting and for each step of the handshake.
    """
    try:
        raw = socket.create_connection((endpoint.address.text, endpoint.port), timeout)
    except socket.gaierror as error:
        return Probed(None, "name", error.strerror or "the name does not resolve")
    except TimeoutError:
        return Probed(None, "tcp", f"no answer within {timeout:g} s")
    except OSError as error:
        return Probed(None, "tcp", error.strerror or str(error))
    with raw:
        return _handshake(raw, endpoint, timeout)


def _handshake(raw: socket.socket, endpoint: Endpoint, timeout: float) -> Probed:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with context.wrap_socket(raw, server_hostname=endpoint.reference.text) as tls:
            return Probed(tls.getpeercert(binary_form=True))
    except TimeoutError:
        reason = f"the handshake took longer than {timeout:g} s"
    except ssl.SSLEOFError:
        reason = "the server ended the handshake"
    except ssl.SSLError as error:
        reason = f"the handshake failed ({error.reason or error})"
        if error.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}:
            reason = "the server does not speak TLS there"
    except (OSError, ValueError) as error:
        reason = f"the handshake failed ({error})"
    return Probed(None, "tls", reason)
