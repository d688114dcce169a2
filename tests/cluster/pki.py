"""Certificates of the test clusters: what kubeadm makes, and what must be refused."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
)
ADDRESSES = ("10.96.0.1", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


def _key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def signing_keys() -> tuple[bytes, bytes]:
    """Return a service-account key pair: private and public PEM."""
    key = rsa.generate_private_key(65537, 2048)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return _key_pem(key), public


class Authority:
    """A cluster CA as kubeadm makes it."""

    def __init__(self, name: str = "kubernetes") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._ski = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        usage = _usage(key_cert_sign=True, crl_sign=True, digital_signature=True)
        self._certificate = (
            self._builder(self._name, self._key, days=3650)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .add_extension(usage, True)
            .add_extension(self._ski, False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate(self) -> bytes:
        """The CA's certificate, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        days: float,
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        start = now - dt.timedelta(hours=1)
        if days < 0:
            start = now + dt.timedelta(days=days - 1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(now + dt.timedelta(days=days))
        )

    def issue(
        self,
        common_name: str,
        *,
        organization: str | None = None,
        names: tuple[str, ...] = (),
        addresses: tuple[str, ...] = (),
        days: float = 365,
        server: bool = True,
    ) -> Pair:
        """Issue a certificate; days below 0 make it expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if organization:
            attributes.insert(
                0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)
            )
        purpose = (
            ExtendedKeyUsageOID.SERVER_AUTH
            if server
            else ExtendedKeyUsageOID.CLIENT_AUTH
        )
        usage = _usage(digital_signature=True, key_encipherment=True)
        aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._ski)
        builder = (
            self._builder(x509.Name(attributes), key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(usage, True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), False)
            .add_extension(aki, False)
        )
        san: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        san += [x509.IPAddress(ipaddress.ip_address(text)) for text in addresses]
        if san:
            builder = builder.add_extension(x509.SubjectAlternativeName(san), False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Pair(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))

    def serving(self, without: str | None = None, also: tuple[str, ...] = ()) -> Pair:
        """Issue the API server's certificate, lacking one identity if asked."""
        return self.issue(
            "kube-apiserver",
            names=tuple(name for name in NAMES if name != without),
            addresses=tuple(text for text in (*ADDRESSES, *also) if text != without),
        )


def _usage(**granted: bool) -> x509.KeyUsage:
    fields = (
        "digital_signature", "content_commitment", "key_encipherment",
        "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
        "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: granted.get(name, False) for name in fields})
