"""Trust anchors: the certificates a server's path may end at (RFC 5280 section 6.1).

A bundle is split by our own reader and handed on as DER. Pure; the cryptography
library is imported with the first bundle.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from kubetls.credentials.hidden import leaves_no_frame
from kubetls.credentials.pem import CERTIFICATE, PemBlock, pem_blocks, pem_text
from kubetls.errors import CredentialEmpty, CredentialMalformed
from kubetls.identity.names import escaped

BUNDLE_BYTES: Final = 1024 * 1024
"""kube-root-ca.crt has a few KiB; an object in etcd has at most 1.5 MiB."""

CERTIFICATE_COUNT: Final = 64
"""Rotation overlaps hold two or three; more is a system bundle in the wrong place."""


@dataclass(frozen=True, slots=True)
class TrustAnchors:
    """What a server's certification path may end at.

    Equal when certificates and order are: a rotation is seen by `!=`.

    Attributes:
        certificates: DER, in the bundle's order, each once. Any of them anchors, also
            an intermediate, as Go and therefore kubectl have it.
        system: True when the operating system's store was asked for by name
            (`trust="system"`, kubeconfig only); `certificates` is empty then.
    """

    certificates: tuple[bytes, ...]
    system: bool = False

    @property
    def pem(self) -> str:
        """Return the certificates as PEM text, for `cadata`."""
        return "".join(pem_text(CERTIFICATE, der) for der in self.certificates)

    @property
    def sha256(self) -> str:
        """Return a fingerprint of all of them, for people and logs."""
        return hashlib.sha256(b"".join(self.certificates)).hexdigest()


SYSTEM_ANCHORS: Final = TrustAnchors((), system=True)


@leaves_no_frame  # a private key may stand in the bundle by mistake
def parse_anchors(
    pem: bytes, source: str, *, authorities_only: bool = False
) -> TrustAnchors:
    """Read a PEM bundle strictly: certificates, comments, and nothing else.

    Args:
        pem: The bundle.
        source: Path or field that errors name.
        authorities_only: Leave out certificates that are no CA. True in a cluster,
            where a server's own certificate never anchors itself; not an error,
            because OpenShift publishes its router's certificate in every pod's
            bundle. In a kubeconfig such a certificate anchors itself alone.

    Raises:
        CredentialEmpty: No certificate in it.
        CredentialMalformed: Any other block, broken base64 or DER, too many, or only
            certificates that were left out.
    """
    if len(pem) > BUNDLE_BYTES:
        raise CredentialMalformed(source, f"larger than {BUNDLE_BYTES} bytes")
    found: dict[bytes, bool] = {}
    for block in pem_blocks(pem, source):
        der = _certificate_der(block, source)
        if der in found:
            continue
        if len(found) == CERTIFICATE_COUNT:
            reason = f"more than {CERTIFICATE_COUNT} certificates"
            raise CredentialMalformed(source, reason)
        found[der] = _is_authority(der, block.line, source)
    if not found:
        raise CredentialEmpty(source, "holds no certificate")
    if not authorities_only:
        return TrustAnchors(tuple(found))
    authorities = tuple(der for der, authority in found.items() if authority)
    if not authorities:
        raise CredentialMalformed(source, "no certificate in it is a CA")
    return TrustAnchors(authorities)


def _certificate_der(block: PemBlock, source: str) -> bytes:
    if block.label == CERTIFICATE:
        return block.decoded(source)
    warning = ""
    if "KEY" in block.label:
        warning = "; a private key in a CA bundle is exposed to all who read it"
    reason = f"line {block.line}: a {block.label} block, only {CERTIFICATE} may be here"
    raise CredentialMalformed(source, reason + warning)


def _is_authority(der: bytes, line: int, source: str) -> bool:
    """Load one certificate and tell whether it may sign others."""
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
    except Exception as error:  # noqa: BLE001 - a parser of foreign bytes: one family out
        text = escaped(str(error), 120)
        reason = f"the certificate in line {line} is not strict DER: {text}"
        raise CredentialMalformed(source, reason) from None
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        # Roots of version 1 have no extensions; OpenSSL takes them as anchors.
        return certificate.version is x509.Version.v1
    return constraints.value.ca
