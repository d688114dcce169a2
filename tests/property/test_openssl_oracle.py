"""OpenSSL and service-identity as oracles: we only ever refuse more."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from service_identity import VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from service_identity.exceptions import CertificateError

import kubetls
from tests.property.strategies import (
    addresses,
    certificate,
    general_names,
    names,
    signing_key,
)


def openssl_accepts(der: bytes, reference: str) -> bool:
    """Handshake in memory with OpenSSL's own check, common names off."""
    pem = ssl.DER_cert_to_PEM_cert(der)
    key = signing_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(pem.encode() + key)
        server_context.load_cert_chain(file.name)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.hostname_checks_common_name = False
    client_context.load_verify_locations(cadata=der)
    first, second = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(first, second, server_hostname=reference)
    server = server_context.wrap_bio(second, first, server_side=True)
    for _ in range(4):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return True


def ours(der: bytes, reference: str) -> bool:
    """Tell our verdict."""
    try:
        kubetls.verify_identity(der, reference)
    except kubetls.KubeTLSError:
        return False
    return True


# Short alphabets make matches and near misses likely.
_close = st.text("a*.-_x", min_size=1, max_size=7)
_sans = st.lists(
    st.one_of(general_names, _close.map(x509.DNSName)), min_size=1, max_size=3
)


@given(_sans, st.one_of(names, _close, addresses.map(str)), st.integers(0, 2))
def test_what_we_accept_openssl_accepts(
    san: list[x509.GeneralName], reference: str, pick: int
) -> None:
    """accept(ours) implies accept(OpenSSL), in a real handshake."""
    entry = san[pick % len(san)]
    candidates = [reference]
    if isinstance(entry, x509.DNSName | x509.IPAddress):
        candidates.append(str(entry.value).replace("*", "a"))
    der = certificate(san, ca=False)
    for candidate in candidates:
        if ours(der, candidate):
            assert openssl_accepts(der, kubetls.reference_identifier(candidate).text)


@given(_sans, st.one_of(names, addresses.map(str)), st.integers(0, 2))
def test_what_we_accept_service_identity_accepts(
    san: list[x509.GeneralName], reference: str, pick: int
) -> None:
    """The same for service-identity, except for stars over A-labels and odd neighbours.

    It refuses a certificate for one entry it cannot parse, and a star over xn--.
    """
    entry = san[pick % len(san)]
    if isinstance(entry, x509.DNSName | x509.IPAddress):
        reference = str(entry.value).replace("*", "a")
    der = certificate(san)
    if not ours(der, reference) or "xn--" in reference:
        return
    loaded = x509.load_der_x509_certificate(der)
    found = kubetls.reference_identifier(reference)
    try:
        if isinstance(found, kubetls.IpId):
            verify_certificate_ip_address(loaded, found.text)
        else:
            verify_certificate_hostname(loaded, found.text)
    except CertificateError:
        return
    except VerificationError as error:
        raise AssertionError(reference, san) from error
