"""Laws of the decoders: total on any bytes, exact on what cryptography builds."""

from __future__ import annotations

import ipaddress

from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der import decoder, encoder
from pyasn1.error import PyAsn1Error
from pyasn1_modules import rfc5280

import kubetls
from kubetls.identity.san import _decoded_by_pyasn1
from tests.property.strategies import certificate, general_names

SEED = certificate(
    [
        x509.DNSName("api.example"),
        x509.DNSName("*.svc.example"),
        x509.IPAddress(ipaddress.ip_address("10.96.0.1")),
    ]
)


def presented(der: bytes) -> kubetls.PresentedIdentifiers | None:
    """Return what is presented, None for a refusal."""
    try:
        return kubetls.presented_identifiers(der)
    except kubetls.CertificateError:
        return None


@given(st.binary(max_size=400))
def test_any_bytes_give_a_value_or_our_error(data: bytes) -> None:
    """Nothing but CertificateError comes out, whatever goes in."""
    presented(data)
    kubetls.explain_identity(data, "api.example")


@given(
    st.integers(0, len(SEED) - 1),
    st.integers(0, 255),
    st.sampled_from(["set", "delete", "insert", "cut"]),
)
def test_mutated_certificate_gives_a_value_or_our_error(
    position: int, octet: int, how: str
) -> None:
    """One octet changed, taken out, added, or everything behind it cut."""
    data = bytearray(SEED)
    if how == "set":
        data[position] = octet
    elif how == "delete":
        del data[position]
    elif how == "insert":
        data.insert(position, octet)
    else:
        del data[position:]
    presented(bytes(data))


def read_as_a_whole(value: bytes) -> int | None:
    """Return how many entries pyasn1 sees with the schema of the whole SAN."""
    try:
        names, tail = decoder.decode(value, asn1Spec=rfc5280.SubjectAltName())
        canonical = encoder.encode(names) == value and not tail
    except (PyAsn1Error, IndexError, ValueError, TypeError):
        return None
    if not canonical or not len(names):
        return None
    kinds = [(name.getName(), name.getComponent()) for name in names]
    odd = any(kind in {"x400Address", "ediPartyName"} for kind, _ in kinds)
    sizes = {len(bytes(value)) for kind, value in kinds if kind == "iPAddress"}
    return None if odd or sizes - {4, 16} else len(names)


@given(st.lists(general_names, min_size=1, max_size=4), st.data())
def test_entry_by_entry_is_as_strict_as_the_whole(
    san: list[x509.GeneralName], data: st.DataObject
) -> None:
    """The extension is read in pieces for speed; no octet gets past that way."""
    value = bytearray(x509.SubjectAlternativeName(san).public_bytes())
    for _ in range(data.draw(st.integers(0, 2))):
        position = data.draw(st.integers(0, max(len(value) - 1, 0)))
        octets = data.draw(st.binary(max_size=2))
        value[position : position + data.draw(st.integers(0, 2))] = octets
    try:
        found = len(list(_decoded_by_pyasn1(bytes(value))))
    except kubetls.CertificateError:
        found = None
    assert read_as_a_whole(bytes(value)) == found


@given(st.lists(general_names, max_size=6))
def test_entries_come_back_in_certificate_order(san: list[x509.GeneralName]) -> None:
    """What cryptography wrote is what we read, kind by kind and in order."""
    found = kubetls.presented_identifiers(certificate(san))
    kinds = (x509.DNSName, x509.IPAddress, x509.UniformResourceIdentifier)
    expected = [[e.value for e in san if isinstance(e, kind)] for kind in kinds]
    assert expected == [
        list(found.dns_names),
        list(found.ip_addresses),
        list(found.uris),
    ]
    assert len(san) == len(found)


def test_ten_thousand_names_are_refused_in_bounded_time() -> None:
    """A certificate beyond what OpenSSL takes is refused before it is decoded."""
    names = [x509.DNSName(f"n{number}.example") for number in range(10_000)]
    assert presented(certificate(names)) is None  # type: ignore[arg-type]


def test_three_thousand_names_are_read_and_capped_in_errors() -> None:
    """The largest certificates that handshakes carry work; errors show a few names."""
    names = [x509.DNSName(f"n{number}.example") for number in range(3_000)]
    der = certificate(names)  # type: ignore[arg-type]
    try:
        kubetls.verify_identity(der, "other.example")
    except kubetls.IdentityMismatch as error:
        assert 3_000 == error.presented_count
        assert 1_000 > len(str(error))
