"""What a session needs to know: where the API server is, and a source of credentials.

Values only: nothing here opens a file. The sources live in `incluster` and
`kubeconfig`; a session asks its source again when time or a 401 says so, and every
answer is one consistent `Generation`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kubetls.credentials.anchors import TrustAnchors
    from kubetls.credentials.endpoint import Endpoint
    from kubetls.credentials.token import BoundToken


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A client's certificate chain and private key, PEM, held in memory only."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse: a private key never travels in a pickle."""
        msg = "a client certificate's private key is never pickled"
        raise TypeError(msg)


@dataclass(frozen=True, slots=True)
class Generation:
    """One consistent reading of everything that may change while a session lives."""

    anchors: TrustAnchors
    token: BoundToken | None = None
    client_certificate: ClientCertificate | None = None


class CredentialSource(Protocol):
    """Where generations come from."""

    def read(self, *, fresh: bool = False) -> Generation:
        """Read one consistent generation.

        Args:
            fresh: The server refused what was read before; what is remembered of it
                (a plugin's answer) will not do.

        Raises:
            CredentialError: A credential is missing or breaks its grammar.
            ConfigError: A kubeconfig is gone, or was changed for the worse.
        """
        ...


@dataclass(frozen=True, slots=True)
class Config:
    """Where the API server is and how to reach it.

    Attributes:
        endpoint: Address to dial and reference identifier to insist on.
        source: Gives credentials and trust anchors, now and again later.
        namespace: Default namespace of the pod or of the kubeconfig's context.
        origin: Where all this came from, for people ("in-cluster", "kubeconfig ...").
    """

    endpoint: Endpoint
    source: CredentialSource
    namespace: str
    origin: str
