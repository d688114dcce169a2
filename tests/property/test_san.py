"""Laws of the decoders: total on any bytes, exact on what cryptography builds."""

from __future__ import annotations

import ipaddress

from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

import kubetls
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
    names = [x509.DNSName(f"n{number}.example") for number in range(2_500)]
    der = certificate(names)  # type: ignore[arg-type]
    try:
        kubetls.verify_identity(der, "other.example")
    except kubetls.IdentityMismatch as error:
        assert 2_500 == error.presented_count
        assert 1_000 > len(str(error))
