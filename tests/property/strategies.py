"""Values for the property tests: names, addresses, certificates and their fragments."""

from __future__ import annotations

import datetime as dt
import ipaddress
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import strategies as st

_LETTERS = "abcxyzABCXYZ0189"

labels = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,8}[a-zA-Z0-9])?", fullmatch=True)
names = st.builds(
    lambda parts, last: ".".join([*parts, last]),
    st.lists(labels, max_size=3),
    st.sampled_from(["example", "svc", "local", "Test", "xn--bcher-kva"]),
)
# Near names: what attackers and mistakes are made of.
near_names = st.text(alphabet="ab*.-_:[]%/ 019xn\x00\u212a\u3002", max_size=24)
presented_names = st.one_of(
    names, names.map(lambda name: f"*.{name}"), st.text("ab*.-_x1", max_size=16)
)
addresses = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.ip_addresses(v=4).map(lambda a: ipaddress.IPv6Address(f"::ffff:{a}")),
)
awkward_addresses = st.sampled_from(
    ["010.0.0.1", "127.1", "0x7f.0.0.1", "2130706433", "1.2.3.4.", "1.2.3.4 ", "[::1]",
     "fe80::1%eth0", "::1.", "1.2.3", "256.1.1.1", "\u0661.2.3.4", "1.2.3.4\n"]
)  # fmt: skip


@cache
def signing_key() -> ec.EllipticCurvePrivateKey:
    """Return the one key of all generated certificates."""
    return ec.generate_private_key(ec.SECP256R1())


def certificate(san: list[x509.GeneralName], *, ca: bool = True) -> bytes:
    """Return a self-signed certificate with this SAN, DER."""
    return certificate_with(*([x509.SubjectAlternativeName(san)] if san else []), ca=ca)


def certificate_with(
    *extensions: x509.ExtensionType, ca: bool = True, critical: bool = False
) -> bytes:
    """Return a self-signed certificate with these extensions, DER."""
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "subject.example")])
    key = signing_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=critical)
    signed = builder.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


general_names = st.one_of(
    presented_names.filter(bool).map(x509.DNSName),
    addresses.map(x509.IPAddress),
    st.sampled_from(
        [
            x509.UniformResourceIdentifier("https://api.example/"),
            x509.RFC822Name("someone@api.example"),
            x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.1"), b"\x05\x00"),
            x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
        ]
    ),
)
