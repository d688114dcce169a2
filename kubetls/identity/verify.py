"""The verdict: does this certificate identify the server we mean (RFC 9525 section 6)?

Judges structure, subjectAltName and name; nothing with a clock or a signature in it:
OpenSSL judges time, chain and usage in the same handshake, and both must accept. We
only ever refuse more. There is no argument, variable or attribute that weakens this,
and the subject's common name is not read at all.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from kubetls.errors import IdentityMismatch
from kubetls.identity.names import (
    DnsPattern,
    IpAddress,
    IpId,
    ReferenceId,
    escaped,
    presented_pattern,
    reference_identifier,
)
from kubetls.identity.san import PresentedIdentifiers, presented_identifiers

SHOWN_COUNT: Final = 8
"""Presented entries that an error shows; certificates with thousands exist."""

CACHED_COUNT: Final = 256
"""Positive verdicts kept: servers x certificates of one process, with room."""

_MINT: Final = object()


@dataclass(frozen=True, slots=True)
class VerifiedIdentity:
    """Proof that one certificate is valid for one reference; minted here only.

    It proves a name, not a connection: no code sends a token on the strength of it.

    Attributes:
        reference: What was insisted on.
        matched: The presented entry that matched, as text.
        certificate_sha256: Digest of the certificate's DER, 32 bytes.
    """

    reference: ReferenceId
    matched: str
    certificate_sha256: bytes
    _mint: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._mint is not _MINT:
            msg = "a VerifiedIdentity comes from verify_identity() only"
            raise TypeError(msg)

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse: a proof is made where it is used, never carried there."""
        msg = "a VerifiedIdentity is not pickled"
        raise TypeError(msg)


def verify_identity(
    der: bytes, reference: str | IpAddress | ReferenceId
) -> VerifiedIdentity:
    """Verify that a certificate presents the reference identifier.

    Args:
        der: The server's certificate, DER, as the handshake delivered it.
        reference: What the caller insists on.

    Returns:
        The proof, with the entry that matched.

    Raises:
        InvalidReference: The reference is no legal name or address.
        CertificateError: The certificate is refused as a whole.
        IdentityMismatch: It is sound and presents no matching entry.
    """
    wanted = reference_identifier(reference)
    digest = hashlib.sha256(der).digest() if isinstance(der, bytes) else b""
    return _verdict(_Certificate(der, digest), wanted)


class _Certificate:
    """A certificate that is hashed and compared by its digest, for the cache."""

    __slots__ = ("der", "digest")

    def __init__(self, der: bytes, digest: bytes) -> None:
        self.der = der
        self.digest = digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Certificate) and self.digest == other.digest


# Refusals raise and are therefore never cached: a server that was repaired must not
# be refused on old evidence, and hostile certificates must not push good ones out.
@lru_cache(maxsize=CACHED_COUNT)
def _verdict(certificate: _Certificate, reference: ReferenceId) -> VerifiedIdentity:
    presented = presented_identifiers(certificate.der)
    matched = matching_entry(presented, reference)
    if matched is None:
        raise IdentityMismatch(
            reference.text, reference.kind, shown_entries(presented), len(presented)
        )
    return VerifiedIdentity(reference, matched, certificate.digest, _MINT)


def matching_entry(
    presented: PresentedIdentifiers, reference: ReferenceId
) -> str | None:
    """Return the first entry that matches, or None.

    An address is compared with iPAddress entries only, octet for octet; a name with
    dNSName entries only. Entries that are no legal names are passed over.
    """
    if isinstance(reference, IpId):
        wanted = ipaddress.ip_address(reference.octets)
        return str(wanted) if wanted in presented.ip_addresses else None
    for name in presented.dns_names:
        pattern = presented_pattern(name)
        if isinstance(pattern, DnsPattern) and pattern.matches(reference):
            return name
    return None


def shown_entries(
    presented: PresentedIdentifiers, count: int = SHOWN_COUNT
) -> tuple[str, ...]:
    """Return the first entries as an error may show them: escaped and capped."""
    return tuple(
        f"{kind} {escaped(str(value))}" if value != "" else kind
        for kind, value in presented.entries[:count]
    )
