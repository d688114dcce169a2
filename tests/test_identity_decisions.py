"""Where kubetls and other verifiers of names differ on purpose.

The rows of docs/hostname-verification.md. The cases come from the tables of OpenSSL's
v3nametest, Go's x509_test and verify_test, rustls-webpki and CPython's test_ssl.
"""

from __future__ import annotations

import copy
import datetime as dt
import ipaddress
import pickle

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import kubetls
from kubetls.identity.names import presented_pattern

KEY = ec.generate_private_key(ec.SECP256R1())
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


def certificate(common_name: str, *names: str) -> bytes:
    """Return a certificate, DER, with these dNSName entries."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START + dt.timedelta(days=1))
    )
    if names:
        san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(san, critical=False)
    signed = builder.sign(KEY, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("example.com", "example.com."),
        ("EXAMPLE.com", "exAMPle.COM"),
        ("*.example.com", "xn--rger-koa.example.com"),
        ("*.co.uk", "example.co.uk"),
        ("*.xn--bar.com", "xn--foo.xn--bar.com"),
        ("xn--poema-9qae5a.com.br", "xn--poema-9qae5a.com.br"),
    ],
)
def test_accepted(name: str, reference: str) -> None:
    """Also where another implementation refuses: these names are what they say."""
    assert name == kubetls.verify_identity(certificate("x", name), reference).matched


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        (None, "api.example"),
        ("example.com.", "example.com"),
        ("example.com.", "example.com."),
        ("*.com", "example.com"),
        ("*.com.", "example.com"),
        ("*", "host"),
        ("f*.a.com", "foo.a.com"),
        ("*www.example.com", "www.example.com"),
        ("x*.b.a", "xn--a.b.a"),
        ("*.*.com", "foo.example.com"),
        ("www.*.com", "www.a.com"),
        ("*.example.com", "example.com"),
        ("null.python.org\0example.org", "null.python.org"),
        (".example.com", "www.example.com"),
        ("10.0.0.1", "10.0.0.1"),
        ("*.0.0.1", "10.0.0.1"),
    ],
)
def test_ignored_entry_matches_nothing(name: str | None, reference: str) -> None:
    """The certificate is sound, and presents no name that counts."""
    names = () if name is None else (name,)
    with pytest.raises(kubetls.IdentityMismatch):
        kubetls.verify_identity(certificate("api.example", *names), reference)


@pytest.mark.parametrize(
    "text",
    [
        ".www.example.com",
        "*.example.com",
        "a..com",
        "-example.com",
        "example-.com",
        "exa_mple.com",
        "foo:bar",
        "test@example.com",
        "null.python.org\0example.org",
        "14.15.16.17 ",
        "14.15.16.17 extra data",
        "2003::baba extra data",
        "127.1",
        "[::1]",
        "",
        ".",
        "..",
    ],
)
def test_equal_text_is_no_name(text: str) -> None:
    """What is no host name is no reference, though a certificate may repeat it."""
    with pytest.raises(kubetls.InvalidReference):
        kubetls.verify_identity(certificate("x", "example.com"), text)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("", "empty; an empty name would mean no check"),
        ("a..com", "an empty label"),
        ("\u212aubernetes", "not ASCII"),
        ("k\u00fcche.example", "A-label"),
        ("*.example.com", "a wildcard is for certificates only"),
        ("[::1]", "brackets belong to URLs"),
        ("::1]", "brackets belong to URLs"),
        ("[::1", "brackets belong to URLs"),
        ("fe80::1%eth0", "a zone id is never in a certificate"),
        (ipaddress.ip_address("fe80::1%eth0"), "a zone id is never in a certificate"),
        ("host:443", "a port or scheme does not belong here"),
        ("127.1", "the last label is a number"),
        ("a.0x1f", "the last label is a number"),
        ("a" * 64, "1 to 63 letters"),
        ("a_b", "1 to 63 letters"),
        ("a." * 126 + "ab", "longer than 253 characters"),
        (10, "pass text or an ipaddress object"),
        (b"api.example", "pass text or an ipaddress object"),
        (None, "pass text or an ipaddress object"),
    ],
)
def test_refused_reference_names_the_rule_it_breaks(given: object, rule: str) -> None:
    """The one error there is, and what to do about it."""
    with pytest.raises(kubetls.InvalidReference, match=rule):
        kubetls.reference_identifier(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["a." * 126 + "a", "a" * 63, "a" * 63 + "." + "b" * 63]
)
def test_longest_names_are_names(text: str) -> None:
    """253 characters in labels of at most 63 (RFC 1035 section 2.3.4)."""
    assert text == str(kubetls.reference_identifier(text))


def test_kelvin_sign_is_no_k() -> None:
    """It becomes one in lower case, so presented names are ASCII before that."""
    pattern = presented_pattern("\u212aubernetes.example")
    assert "not ASCII" == pattern


def test_proof_is_made_where_it_is_used() -> None:
    """It is neither pickled nor copied."""
    proof = kubetls.verify_identity(certificate("x", "api.example"), "api.example")
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(proof)
    with pytest.raises(TypeError, match="not pickled"):
        copy.copy(proof)
