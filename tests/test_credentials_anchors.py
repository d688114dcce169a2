"""PEM bundles: what is an anchor, and what is no bundle."""

from __future__ import annotations

import base64
import datetime as dt
import pickle
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kubetls.credentials.anchors import (
    BUNDLE_BYTES,
    CERTIFICATE_COUNT,
    SYSTEM_ANCHORS,
    TrustAnchors,
    parse_anchors,
)
from kubetls.credentials.client_certificate import parse_client_certificate
from kubetls.credentials.hidden import HiddenBytes
from kubetls.errors import CredentialEmpty, CredentialError, CredentialMalformed
from tests.credential_files import CA_PEM, KEY_PEM, OTHER_CA_PEM, SERVER_PEM

CA_DER = ssl.PEM_cert_to_DER_cert(CA_PEM.decode())
OTHER_DER = ssl.PEM_cert_to_DER_cert(OTHER_CA_PEM.decode())
SERVER_DER = ssl.PEM_cert_to_DER_cert(SERVER_PEM.decode())
SOURCE = "/volume/ca.crt"
BODY = b"".join(CA_PEM.splitlines()[1:-1])


def block(body: bytes, label: bytes = b"CERTIFICATE") -> bytes:
    """Return a PEM block around any body."""
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label, body, label)


def certificate_without_constraints() -> bytes:
    """Return the DER of a self-signed certificate that has no extension."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "plain")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now, now)
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("expected", "pem"),
    [
        ((CA_DER,), CA_PEM),
        ((CA_DER, OTHER_DER), CA_PEM + OTHER_CA_PEM),
        ((OTHER_DER, CA_DER), OTHER_CA_PEM + CA_PEM + OTHER_CA_PEM),
        ((CA_DER,), b"# the cluster\n\n" + CA_PEM + b"\n# end\n"),
        ((CA_DER,), CA_PEM.replace(b"\n", b"\r\n")),
        ((CA_DER,), CA_PEM.removesuffix(b"\n")),
        ((CA_DER,), block(BODY)),
        ((CA_DER,), block(b"  \n" + BODY[:10] + b" \n\n\t" + BODY[10:])),
        ((SERVER_DER,), SERVER_PEM),
    ],
    ids=[
        "one",
        "two",
        "repeated",
        "comments",
        "crlf",
        "no newline",
        "one line",
        "blanks",
        "no CA",
    ],
)
def test_bundle_gives_each_certificate_once(
    expected: tuple[bytes, ...], pem: bytes
) -> None:
    """DER in the bundle's order, each once; text between blocks is a comment."""
    assert TrustAnchors(expected) == parse_anchors(pem, SOURCE)


@pytest.mark.parametrize("pem", [b"", b"\n \n", b"# nothing\n", b"\xff\xfe\x00"])
def test_bundle_without_certificate_is_empty(pem: bytes) -> None:
    """A file without any block holds no certificate."""
    with pytest.raises(CredentialEmpty) as caught:
        parse_anchors(pem, SOURCE)
    assert SOURCE == caught.value.path


@pytest.mark.parametrize(
    ("expected", "pem"),
    [
        ("a EC PRIVATE KEY block", CA_PEM + KEY_PEM),
        ("a PRIVATE KEY block", block(BODY, b"PRIVATE KEY") + CA_PEM),
        ("TRUSTED CERTIFICATE block", block(BODY, b"TRUSTED CERTIFICATE")),
        ("X509 CRL block", CA_PEM + block(BODY, b"X509 CRL")),
        ("not a PEM boundary", b"-----BEGIN CERTIFICATE----\n"),
        ("not a PEM boundary", b"-----begin certificate-----\n"),
        ("not a PEM boundary", CA_PEM + b"-----END CERTIFICATE-----\n"),
        ("not a PEM boundary", b"\xef\xbb\xbf" + CA_PEM),
        ("has no end", CA_PEM[:-30]),
        ("has no end", CA_PEM + b"-----BEGIN CERTIFICATE-----"),
        ("not the end", CA_PEM[:-30] + b"\n" + CA_PEM),
        ("not the end", block(BODY).replace(b"END C", b"END X509 C")),
        ("not base64", block(b"")),
        ("not base64", block(b"====")),
        ("not base64", block(BODY[:-1])),
        ("not base64", block(BODY + b"=")),
        ("not base64", block(b"QR==")),
        ("not base64", block(BODY[:8] + b"-_" + BODY[10:])),
        ("not base64", block(b"Proc-Type: 4,ENCRYPTED\n" + BODY)),
        ("not strict DER", block(b"AAAA")),
        ("not strict DER", block(base64.b64encode(CA_DER + b"\x00"))),
        ("not strict DER", block(base64.b64encode(CA_DER[:-1]))),
        ("not strict DER", CA_PEM + block(base64.b64encode(b"0\x80" + CA_DER[4:]))),
    ],
)
def test_malformed_bundle_is_refused_as_a_whole(expected: str, pem: bytes) -> None:
    """One bad block refuses the bundle: no key, no other block, no guess."""
    with pytest.raises(CredentialMalformed, match=expected) as caught:
        parse_anchors(pem, SOURCE)
    assert SOURCE == caught.value.path
    assert "\n" not in str(caught.value)


def test_private_key_in_a_bundle_is_named_as_exposed() -> None:
    """A key in a CA bundle is an accident its owner has to hear of."""
    with pytest.raises(CredentialMalformed, match="exposed"):
        parse_anchors(CA_PEM + KEY_PEM, SOURCE)


def test_bundle_is_capped() -> None:
    """At most 64 different certificates and 1 MiB."""
    many = [
        block(base64.b64encode(certificate_without_constraints())) for _ in range(64)
    ]
    assert CERTIFICATE_COUNT == len(parse_anchors(b"".join(many), SOURCE).certificates)
    with pytest.raises(CredentialMalformed, match="more than 64"):
        parse_anchors(b"".join([*many, CA_PEM]), SOURCE)
    with pytest.raises(CredentialMalformed, match="larger"):
        parse_anchors(b"#" * BUNDLE_BYTES + CA_PEM, SOURCE)


def test_only_authorities_anchor_in_a_cluster() -> None:
    """A server's own certificate is left out there; OpenShift's bundles have one."""
    bundle = (
        SERVER_PEM + CA_PEM + block(base64.b64encode(certificate_without_constraints()))
    )
    anchors = parse_anchors(bundle, SOURCE, authorities_only=True)
    assert (CA_DER,) == anchors.certificates
    assert 3 == len(parse_anchors(bundle, SOURCE).certificates)


def test_bundle_without_an_authority_is_refused_in_a_cluster() -> None:
    """Left with no anchor, the bundle is malformed; there is no fallback."""
    with pytest.raises(CredentialMalformed, match="no certificate in it is a CA"):
        parse_anchors(SERVER_PEM, SOURCE, authorities_only=True)


def test_anchors_show_a_rotation() -> None:
    """Equal by content; so is the fingerprint; the system's store is another value."""
    old, new = parse_anchors(CA_PEM, SOURCE), parse_anchors(OTHER_CA_PEM, SOURCE)
    assert old == parse_anchors(b"# again\n" + CA_PEM, "elsewhere")
    assert old != new
    assert old.sha256 != new.sha256
    assert SYSTEM_ANCHORS.system
    assert () == SYSTEM_ANCHORS.certificates
    assert SYSTEM_ANCHORS != TrustAnchors(())


def test_pem_loads_into_a_context() -> None:
    """`.pem` is what OpenSSL reads the same certificates from."""
    anchors = parse_anchors(CA_PEM + OTHER_CA_PEM, SOURCE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=anchors.pem)
    assert set(anchors.certificates) == set(context.get_ca_certs(binary_form=True))


@pytest.mark.parametrize(
    ("certificate", "key"),
    [(SERVER_PEM, KEY_PEM), (KEY_PEM + SERVER_PEM, SERVER_PEM + KEY_PEM)],
    ids=["two files", "one file for both, as the kubelet writes it"],
)
def test_client_certificate_takes_what_belongs_to_it(
    certificate: bytes, key: bytes
) -> None:
    """Certificates from one text, the key from the other; the chain holds no key."""
    pair = parse_client_certificate(
        HiddenBytes(certificate), "certificate", HiddenBytes(key), "key"
    )
    assert SERVER_DER == ssl.PEM_cert_to_DER_cert(pair.certificate_pem.decode())
    assert b"KEY" not in pair.certificate_pem
    assert serialization.load_pem_private_key(pair.key_pem, None)
    assert "KEY" not in repr(pair)
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(pair)


ENCRYPTED = serialization.load_pem_private_key(KEY_PEM, None).private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.BestAvailableEncryption(b"x"),
)


@pytest.mark.parametrize(
    ("expected", "certificate", "key"),
    [
        ("certificate: holds no certificate", KEY_PEM, KEY_PEM),
        ("key: holds no private key", SERVER_PEM, SERVER_PEM),
        ("key: holds no private key", SERVER_PEM, block(BODY, b"PUBLIC KEY")),
        ("key: holds several private keys", SERVER_PEM, KEY_PEM + KEY_PEM),
        ("key: the private key is encrypted", SERVER_PEM, ENCRYPTED),
        (
            "key: the private key is encrypted",
            SERVER_PEM,
            block(b"Proc-Type: 4,ENCRYPTED\n" + BODY, b"RSA PRIVATE KEY"),
        ),
        ("key: a OPENSSH PRIVATE KEY", SERVER_PEM, block(BODY, b"OPENSSH PRIVATE KEY")),
        ("key: .* not base64", SERVER_PEM, block(b"?", b"PRIVATE KEY")),
        ("certificate: .* has no end", SERVER_PEM[:-30], KEY_PEM),
        ("key: larger than", SERVER_PEM, b"#" * (BUNDLE_BYTES + 1)),
    ],
)
def test_unusable_client_certificate_is_refused(
    expected: str, certificate: bytes, key: bytes
) -> None:
    """The fault names its side; an encrypted key never makes OpenSSL ask a terminal."""
    with pytest.raises(CredentialError, match=expected):
        parse_client_certificate(
            HiddenBytes(certificate), "certificate", HiddenBytes(key), "key"
        )
