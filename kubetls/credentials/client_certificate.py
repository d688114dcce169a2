"""A client's certificate and key, from the PEM files of a kubeconfig. Pure.

Chain and key may lie in one file (the kubelet writes them so) or in two; only what
belongs there is taken on, so that a key never travels in the chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubetls.credentials.anchors import BUNDLE_BYTES
from kubetls.credentials.config import ClientCertificate
from kubetls.credentials.hidden import leaves_no_frame
from kubetls.credentials.pem import CERTIFICATE, pem_blocks, pem_text
from kubetls.errors import CredentialEmpty, CredentialMalformed

if TYPE_CHECKING:
    from kubetls.credentials.hidden import HiddenBytes

_KEYS: Final = {"PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"}


@leaves_no_frame
def parse_client_certificate(
    certificate: HiddenBytes,
    certificate_source: str,
    key: HiddenBytes,
    key_source: str,
) -> ClientCertificate:
    """Take the certificates of one text and the private key of the other.

    Whether they fit each other is seen when the TLS context loads them.

    Raises:
        CredentialEmpty: No certificate, or no key.
        CredentialMalformed: Broken PEM, several keys, or an encrypted one.
    """
    return ClientCertificate(
        _chain(certificate, certificate_source), _key(key, key_source)
    )


def _chain(pem: HiddenBytes, source: str) -> bytes:
    _refuse_large(pem, source)
    chain = "".join(
        pem_text(CERTIFICATE, block.decoded(source))
        for block in pem_blocks(pem.content, source)
        if block.label == CERTIFICATE
    )
    if not chain:
        raise CredentialEmpty(source, "holds no certificate")
    return chain.encode("ascii")


def _key(pem: HiddenBytes, source: str) -> bytes:
    _refuse_large(pem, source)
    blocks = [b for b in pem_blocks(pem.content, source) if b.label.endswith("KEY")]
    keys = [block for block in blocks if block.label != "PUBLIC KEY"]
    if not keys:
        raise CredentialEmpty(source, "holds no private key")
    if len(keys) > 1:
        raise CredentialMalformed(source, "holds several private keys")
    (key,) = keys
    # OpenSSL would ask at the terminal for the passphrase.
    if key.label.startswith("ENCRYPTED") or any(b":" in line for line in key.body):
        raise CredentialMalformed(source, "the private key is encrypted, decrypt it")
    if key.label not in _KEYS:
        raise CredentialMalformed(source, f"a {key.label} block is no key for TLS")
    return pem_text(key.label, key.decoded(source)).encode("ascii")


def _refuse_large(pem: HiddenBytes, source: str) -> None:
    if len(pem) > BUNDLE_BYTES:
        raise CredentialMalformed(source, f"larger than {BUNDLE_BYTES} bytes")
