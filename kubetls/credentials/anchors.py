"""Trust anchors: the certificates a server's path may end at (RFC 5280 section 6.1).

OpenSSL's own PEM reader passes over garbage and private keys in silence and stops at
the first broken block, so the bundle is split here and handed on as DER. Pure; the
cryptography library is imported with the first bundle.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

from kubetls.errors import CredentialEmpty, CredentialMalformed
from kubetls.identity.names import escaped

BUNDLE_BYTES: Final = 1024 * 1024
"""kube-root-ca.crt has a few KiB; an object in etcd has at most 1.5 MiB."""

CERTIFICATE_COUNT: Final = 64
"""Rotation overlaps hold two or three; more is a system bundle in the wrong place."""

_BEGIN: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\Z")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*={0,2}\Z")


@dataclass(frozen=True, slots=True)
class TrustAnchors:
    """What a server's certification path may end at.

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
        """Return the certificates as PEM text."""
        return "".join(
            f"-----BEGIN CERTIFICATE-----\n{_wrapped(der)}-----END CERTIFICATE-----\n"
            for der in self.certificates
        )


def _wrapped(der: bytes) -> str:
    return base64.encodebytes(der).decode("ascii")


SYSTEM_ANCHORS: Final = TrustAnchors((), system=True)


def parse_anchors(pem: bytes, source: str, *, require_ca: bool = False) -> TrustAnchors:
    """Read a PEM bundle strictly: certificates, comments, and nothing else.

    Args:
        pem: The bundle.
        source: Path or field that errors name.
        require_ca: Refuse certificates that are no CA. True in a cluster; kubeconfigs
            may anchor a server's own certificate (OpenShift does), which then
            anchors itself alone.

    Raises:
        CredentialEmpty: No certificate in it.
        CredentialMalformed: Any other block, broken base64 or DER, too many.
    """
    if len(pem) > BUNDLE_BYTES:
        raise CredentialMalformed(source, f"larger than {BUNDLE_BYTES} bytes")
    certificates = tuple(dict.fromkeys(_blocks(pem, source)))
    if not certificates:
        raise CredentialEmpty(source, "holds no certificate")
    if len(certificates) > CERTIFICATE_COUNT:
        reason = f"{len(certificates)} certificates, at most {CERTIFICATE_COUNT}"
        raise CredentialMalformed(source, reason)
    for number, der in enumerate(certificates, start=1):
        _check_certificate(der, f"certificate {number}", source, require_ca=require_ca)
    return TrustAnchors(certificates)


def _blocks(pem: bytes, source: str) -> list[bytes]:
    """Return the DER of every block; text between blocks is a comment."""
    found: list[bytes] = []
    body: list[bytes] | None = None
    for number, line in enumerate(pem.splitlines(), start=1):
        text = line.strip()
        if body is None:
            if not text.startswith(b"-----"):
                continue
            _require_certificate_block(text, number, source)
            body = []
        elif text == b"-----END CERTIFICATE-----":
            found.append(_decoded(b"".join(body), number, source))
            body = None
        elif text.startswith(b"-----"):
            reason = f"line {number}: a block begins inside another one"
            raise CredentialMalformed(source, reason)
        else:
            body.append(text)
    if body is not None:
        raise CredentialMalformed(source, "the last block has no end")
    return found


def _require_certificate_block(text: bytes, number: int, source: str) -> None:
    begin = _BEGIN.match(text)
    if begin is None:
        raise CredentialMalformed(source, f"line {number}: not a PEM boundary")
    label = begin[1].decode("ascii")
    if label == "CERTIFICATE":
        return
    warning = "; a private key in a CA bundle is exposed" if "KEY" in label else ""
    reason = f"line {number}: a {label} block, only CERTIFICATE may stand here{warning}"
    raise CredentialMalformed(source, reason)


def _decoded(body: bytes, number: int, source: str) -> bytes:
    try:
        if not _BASE64.match(body):
            raise binascii.Error  # noqa: TRY301 - one exit for both kinds of fault
        der = base64.b64decode(body, validate=True)
    except binascii.Error:
        reason = f"the block that ends in line {number} is not base64"
        raise CredentialMalformed(source, reason) from None
    return der


def _check_certificate(der: bytes, what: str, source: str, *, require_ca: bool) -> None:
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
    except Exception as error:  # noqa: BLE001 - foreign bytes: one family out
        reason = f"{what} is not strict DER: {escaped(str(error), 120)}"
        raise CredentialMalformed(source, reason) from None
    if not require_ca:
        return
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        is_authority = constraints.ca
    except x509.ExtensionNotFound:
        # Version 1 roots have no extensions; OpenSSL takes them as anchors.
        is_authority = certificate.version is x509.Version.v1
    if not is_authority:
        reason = f"{what} is no CA (basicConstraints), so it cannot sign for a server"
        raise CredentialMalformed(source, reason)
