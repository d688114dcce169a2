"""Certificates whose subjectAltName is no strict DER: refused as a whole.

Each also presents the right name or address: OpenSSL accepts several of them for it.
"""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

import kubetls
from tests.property.strategies import certificate_with

NAME = b"\x82\x09a.example"
ADDRESS = b"\x87\x04\x0a\x60\x00\x01"


def sequence(*entries: bytes) -> bytes:
    """Return a SAN of these encoded entries."""
    body = b"".join(entries)
    return bytes([0x30, len(body)]) + body


def certificate(*values: bytes) -> bytes:
    """Return a certificate, DER, with these octets as its SAN, or as several."""
    # A second one of a kind cannot be built: it is renamed afterwards.
    kinds = (
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.ISSUER_ALTERNATIVE_NAME,
    )
    paired = zip(kinds, values, strict=False)
    der = certificate_with(*(x509.UnrecognizedExtension(*pair) for pair in paired))
    return der.replace(b"\x06\x03\x55\x1d\x12", b"\x06\x03\x55\x1d\x11")


def test_certificate_without_a_fault_is_accepted() -> None:
    """The control: these octets, and no other."""
    der = certificate(sequence(NAME, ADDRESS))
    kubetls.verify_identity(der, "a.example")
    kubetls.verify_identity(der, "10.96.0.1")


BODY = NAME + ADDRESS
FAULTS = {
    "no entry": [sequence()],
    "no octet": [b""],
    "octets behind it": [sequence(BODY) + b"\x00"],
    "a length without end": [b"\x30\x80" + BODY + b"\x00\x00"],
    "a length in two octets": [b"\x30\x81" + bytes([len(BODY)]) + BODY],
    "a length beyond the end": [bytes([0x30, len(BODY) + 1]) + BODY],
    "a set": [b"\x31" + sequence(BODY)[1:]],
    "a name in pieces": [sequence(BODY, b"\xa2\x0b\x04\x09b.example")],
    "a name's length in two octets": [sequence(BODY, b"\x82\x81\x09b.example")],
    "a name that is no IA5String": [sequence(BODY, b"\x82\x01\xff")],
    "an address of no octet": [sequence(BODY, b"\x87\x00")],
    "an address of five octets": [sequence(BODY, b"\x87\x05\x0a\x60\x00\x01\x00")],
    "an address with a mask": [
        sequence(BODY, b"\x87\x08\x0a\x60\x00\x01" + b"\xff" * 4)
    ],
    "an unknown tag": [sequence(BODY, b"\x89\x01a")],
    "a tag in two octets": [sequence(BODY, b"\x9f\x02\x09b.example")],
    "an x400Address": [sequence(BODY, b"\xa3\x02\x30\x00")],
    "an ediPartyName": [sequence(BODY, b"\xa5\x03\xa1\x01\x00")],
    "it stands twice": [sequence(BODY), sequence(BODY)],
}


@pytest.mark.parametrize("reference", ["a.example", "10.96.0.1"])
@pytest.mark.parametrize("values", FAULTS.values(), ids=FAULTS)
def test_fault_of_structure_refuses_the_certificate(
    values: list[bytes], reference: str
) -> None:
    """What one reader takes for an entry another may not: nobody's word counts."""
    with pytest.raises(kubetls.CertificateError):
        kubetls.verify_identity(certificate(*values), reference)


def test_fault_of_content_ignores_the_entry_only() -> None:
    """A well-formed entry that is no legal name takes nothing away from the others."""
    der = certificate(sequence(b"\x82\x03a_b", BODY, b"\x82\x01*", b"\x82\x00"))
    kubetls.verify_identity(der, "a.example")
    kubetls.verify_identity(der, "10.96.0.1")
