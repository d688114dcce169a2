"""Laws of the decoders: total on any bytes, exact on what cryptography builds."""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der import decoder, encoder
from pyasn1.error import PyAsn1Error
from pyasn1_modules import rfc5280

import kubetls
from kubetls.identity import san as reader
from kubetls.identity.san import _decoded_by_pyasn1, _load, _san_of
from tests.property.strategies import certificate, certificate_with, general_names

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


SAN = x509.ObjectIdentifier("2.5.29.17")
FAULTS = pytest.mark.parametrize(
    "octets",
    [
        pytest.param("300a 8708 0a000000 ff000000", id="address-and-mask"),
        pytest.param("3007 8705 0a00000001", id="address-of-five-octets"),
        pytest.param("3003 8201ff", id="name-beyond-ascii"),
        pytest.param("3003 8601ff", id="uri-beyond-ascii"),
        pytest.param("3007 a505 a103 0c0178", id="edi-party-name"),
        pytest.param("3081 04 8202 6162", id="length-in-a-longer-form"),
        pytest.param("3003 820161 00", id="tail"),
        pytest.param("3005 820561", id="cut-off"),
    ],
)


def with_octets(octets: str) -> bytes:
    """Return a certificate with these octets as its SAN."""
    return certificate_with(x509.UnrecognizedExtension(SAN, bytes.fromhex(octets)))


@FAULTS
def test_first_decoder_refuses_a_fault_alone(octets: str) -> None:
    """Whatever the second one says of it."""
    with pytest.raises(kubetls.MalformedCertificate):
        _san_of(_load(with_octets(octets)))


@FAULTS
def test_second_decoder_refuses_a_fault_alone(octets: str) -> None:
    """Whatever the first one says of it."""
    with pytest.raises(kubetls.MalformedCertificate):
        list(_decoded_by_pyasn1(bytes.fromhex(octets)))


def test_extension_without_a_name_is_refused() -> None:
    """An empty SAN is a fault, no SAN is none (RFC 5280 section 4.2.1.6)."""
    with pytest.raises(kubetls.MalformedCertificate, match="empty"):
        kubetls.presented_identifiers(with_octets("3000"))
    assert 0 == len(kubetls.presented_identifiers(certificate([])))


def test_extension_that_stands_twice_is_refused() -> None:
    """No decoder chooses one of two SANs."""
    twins = [
        x509.UnrecognizedExtension(
            x509.ObjectIdentifier(f"2.5.29.{number}"), bytes.fromhex("3003 820161")
        )
        for number in (17, 99)
    ]
    der = certificate_with(*twins).replace(b"\x55\x1d\x63", b"\x55\x1d\x11")
    with pytest.raises(kubetls.MalformedCertificate, match="twice"):
        kubetls.presented_identifiers(der)


@pytest.mark.parametrize("critical", [False, True])
def test_critical_extension_is_read_the_same(*, critical: bool) -> None:
    """Its flag stands between its identifier and its value."""
    names = x509.SubjectAlternativeName([x509.DNSName("api.example")])
    found = kubetls.presented_identifiers(certificate_with(names, critical=critical))
    assert ("api.example",) == found.dns_names


def test_decoders_that_disagree_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is wrong, and nobody knows which."""
    other = [("dNSName", "other.example")]
    monkeypatch.setattr(reader, "_decoded_by_pyasn1", lambda _: iter(other))
    with pytest.raises(kubetls.MalformedCertificate, match="disagree"):
        kubetls.presented_identifiers(SEED)


@pytest.mark.parametrize(
    "given", [None, "", bytearray(SEED), memoryview(SEED)], ids=type
)
def test_certificate_is_bytes_or_refused(given: object) -> None:
    """Also where a library would take it: bytes that change are no evidence."""
    with pytest.raises(kubetls.MalformedCertificate, match="bytes"):
        kubetls.presented_identifiers(given)  # type: ignore[arg-type]
    with pytest.raises(kubetls.MalformedCertificate, match="bytes"):
        kubetls.verify_identity(given, "api.example")  # type: ignore[arg-type]


def test_certificate_beyond_the_bound_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """64 KiB are looked at; one octet more is refused before any decoder."""
    monkeypatch.setattr(reader, "CERTIFICATE_BYTES", len(SEED))
    assert 3 == len(kubetls.presented_identifiers(SEED))
    monkeypatch.setattr(reader, "CERTIFICATE_BYTES", len(SEED) - 1)
    monkeypatch.delattr(reader, "_load")
    with pytest.raises(kubetls.CertificateError, match="looked at"):
        kubetls.presented_identifiers(SEED)


def test_most_names_are_read_and_no_more() -> None:
    """The bound of 4096 entries is one of its own: short names fit in few bytes."""
    names = [x509.DNSName("a") for _ in range(reader.ENTRY_COUNT)]
    assert reader.ENTRY_COUNT == len(presented(certificate(names)) or ())  # type: ignore[arg-type]
    der = certificate([*names, x509.DNSName("a")])
    assert reader.CERTIFICATE_BYTES > len(der)
    with pytest.raises(kubetls.CertificateError, match=str(reader.ENTRY_COUNT)):
        kubetls.presented_identifiers(der)
