"""What the server shows and what it takes: a CA, a certificate, a token."""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import tempfile
import time
from pathlib import Path
from typing import Final

from kubetls.credentials.anchors import parse_anchors
from kubetls.credentials.config import Generation
from kubetls.credentials.token import parse_mounted_token
from kubetls.testing.authority import Authority

ADDRESS: Final = "127.0.0.1"
NAMES: Final = ("localhost", "kubernetes.default.svc")
TOKEN_SECONDS: Final = 3600.0


class Credentials:
    """The server's side of them, and a credential source with what was published.

    Attributes:
        context: For connections that begin now.
        generation: What `config` sees.
    """

    def __init__(self) -> None:
        self._authority = Authority()
        self._token = _token(TOKEN_SECONDS)
        self.context = _serving_context(self._authority)
        self.publish()

    def read(self, *, fresh: bool = False) -> Generation:  # noqa: ARG002 - always is
        """Return what was published last."""
        return self.generation

    def publish(self) -> None:
        """Let readers see the token and the CA of now."""
        self.generation = Generation(
            parse_anchors(self._authority.certificate_pem, "ca.crt"),
            parse_mounted_token(self._token.encode(), "token"),
        )

    def admits(self, authorization: str | None) -> bool:
        """Tell whether a request has the current token."""
        return authorization == f"Bearer {self._token}"

    def replace_token(self, seconds: float) -> None:
        """Take a new token only, which says that it lives so long."""
        self._token = _token(seconds)

    def replace_certificate(self, *, authority: bool) -> None:
        """Show a new certificate; issued by a new CA, if so."""
        if authority:
            self._authority = Authority()
        self.context = _serving_context(self._authority)


def _serving_context(authority: Authority) -> ssl.SSLContext:
    pem = authority.issue(NAMES, (ADDRESS,))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "server.pem"
        path.write_bytes(pem)
        context.load_cert_chain(path)
    return context


def _token(seconds: float) -> str:
    """Return a token in the form of a service account's, signed by nobody."""
    claims = {"exp": int(time.time() + seconds), "jti": secrets.token_hex(8)}
    parts = [{"alg": "none"}, claims]
    encoded = [_segment(json.dumps(part).encode()) for part in parts]
    return ".".join([*encoded, _segment(secrets.token_bytes(16))])


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
