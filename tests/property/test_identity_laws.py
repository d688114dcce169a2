"""Laws of identity (RFC 9525 section 6): what a verdict may never depend on."""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509
from hypothesis import assume, given
from hypothesis import strategies as st

import kubetls
from tests.property.strategies import (
    addresses,
    awkward_addresses,
    certificate,
    general_names,
    names,
    near_names,
)


def accepts(der: bytes, reference: object) -> bool:
    """Tell our verdict."""
    try:
        kubetls.verify_identity(der, reference)  # type: ignore[arg-type]
    except (kubetls.IdentityMismatch, kubetls.CertificateError):
        return False
    return True


@given(st.one_of(near_names, awkward_addresses, st.text(max_size=300)))
def test_reference_is_parsed_or_refused(text: str) -> None:
    """Any text: an identifier, or InvalidReference and no other error."""
    try:
        found = kubetls.reference_identifier(text)
    except kubetls.InvalidReference as error:
        assert isinstance(error, ValueError)
        assert str(error).isascii()
    else:
        assert found == kubetls.reference_identifier(found.text)


@given(awkward_addresses)
def test_text_that_resolvers_read_differently_is_refused(text: str) -> None:
    """Short, octal, hexadecimal, zoned, bracketed and dotted forms are no reference."""
    with pytest.raises(kubetls.InvalidReference):
        kubetls.reference_identifier(text)


@given(addresses)
def test_address_is_read_as_its_octets(address: ipaddress.IPv4Address) -> None:
    """Every spelling of one address is the same reference."""
    found = kubetls.reference_identifier(str(address))
    assert address.packed == found.octets  # type: ignore[union-attr]
    assert found == kubetls.reference_identifier(address)
    assert found.server_name is None


@given(names)
def test_case_and_one_final_dot_do_not_matter(name: str) -> None:
    """ASCII case is folded and the absolute form is the same name."""
    assume(len(name) < 250)
    der = certificate([x509.DNSName(name)])
    assert accepts(der, name.upper())
    assert accepts(der, name.lower() + ".")


@given(names, names)
def test_wildcard_is_exactly_one_label(base: str, head: str) -> None:
    """A star covers one label, neither none nor two."""
    assume("." in base and len(base) + len(head) < 240)
    der = certificate([x509.DNSName(f"*.{base}")])
    label = head.partition(".")[0]
    assert accepts(der, f"{label}.{base}")
    assert not accepts(der, base)
    assert not accepts(der, f"a.{label}.{base}")


@given(st.lists(general_names, min_size=1, max_size=5), general_names, names, addresses)
def test_adding_an_entry_never_takes_a_match_away(
    san: list[x509.GeneralName],
    more: x509.GeneralName,
    name: str,
    address: ipaddress.IPv4Address,
) -> None:
    """Order, repetitions and further entries do not turn a match into a mismatch."""
    for entry, reference in (
        (x509.DNSName(name), name),
        (x509.IPAddress(address), address),
    ):
        assert accepts(certificate([*san, entry]), reference)
        assert accepts(certificate([entry, more, *reversed(san), entry]), reference)


@given(st.lists(general_names, max_size=4), names, addresses)
def test_names_and_addresses_never_stand_in_for_each_other(
    san: list[x509.GeneralName], name: str, address: ipaddress.IPv4Address
) -> None:
    """A dNSName satisfies no address, an iPAddress no name, whatever it spells."""
    others = [entry for entry in san if not isinstance(entry, x509.IPAddress)]
    spelled = x509.DNSName(str(address).replace(":", "-"))
    assert not accepts(certificate([*others, spelled]), address)
    only = [entry for entry in san if not isinstance(entry, x509.DNSName)]
    assert not accepts(certificate([*only, x509.IPAddress(address)]), name)


@given(st.ip_addresses(v=4))
def test_mapped_address_is_another_address(address: ipaddress.IPv4Address) -> None:
    """An IPv4-mapped address has sixteen octets and equals no four of them."""
    mapped = ipaddress.IPv6Address(f"::ffff:{address}")
    assert not accepts(certificate([x509.IPAddress(address)]), mapped)
    assert not accepts(certificate([x509.IPAddress(mapped)]), address)


@given(st.lists(general_names, max_size=4), names)
def test_explanation_says_what_the_verdict_is(
    san: list[x509.GeneralName], name: str
) -> None:
    """explain_identity and verify_identity never disagree."""
    der = certificate(san)
    explained = kubetls.explain_identity(der, name)
    assert accepts(der, name) == (explained.verdict == "match")
    assert any(entry.matches for entry in explained.entries) == accepts(der, name)
    assert str(explained).isascii()
