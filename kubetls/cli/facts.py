"""What stands in a certificate besides its names, and what is wrong with its dates."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kubetls.cli.page import span
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    import datetime as dt


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """A certificate, for people; read without trusting any of it.

    Attributes:
        sha256: Digest of its DER.
        subject: Whom it names; never used to identify a server.
        issuer: Who signed it, by its own word.
        not_before: First moment, ISO 8601.
        not_after: Last moment, ISO 8601.
        dates: Its dates in words.
        valid: Whether it is valid at the moment that was asked about.
    """

    sha256: str
    subject: str
    issuer: str
    not_before: str
    not_after: str
    dates: str
    valid: bool

    @property
    def data(self) -> dict[str, Any]:
        """The facts as a plain dict."""
        return asdict(self)


def certificate_facts(der: bytes, now: dt.datetime) -> CertificateFacts | None:
    """Return the facts of a certificate, None when it is too broken to have any."""
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(der)
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        subject = certificate.subject.rfc4514_string()
        issuer = certificate.issuer.rfc4514_string()
    except Exception:  # noqa: BLE001 - hostile bytes, and facts are a courtesy
        return None
    return CertificateFacts(
        hashlib.sha256(der).hexdigest(),
        escaped(subject, 200),
        escaped(issuer, 200),
        start.isoformat(),
        end.isoformat(),
        _dates(start, end, now),
        start <= now <= end,
    )


def _dates(start: dt.datetime, end: dt.datetime, now: dt.datetime) -> str:
    if now > end:
        return f"expired {span((now - end).total_seconds())} ago, {end:%Y-%m-%d %H:%M}Z"
    if now < start:
        return f"not valid before {start:%Y-%m-%d %H:%M}Z"
    return f"valid for another {span((end - now).total_seconds())}, to {end:%Y-%m-%d}"
