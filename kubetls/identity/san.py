"""subjectAltName: certificate bytes in, presented identifiers out (RFC 5280 4.2.1.6).

Two decoders that share no code read every certificate: cryptography (strict DER of the
whole certificate) and pyasn1-modules (the SAN, decoded, encoded again, byte for byte
equal, nothing left over). They must give the same list. STRUCTURE faults refuse the
certificate; whether a well-formed dNSName is also a legal name is not judged here.

Both libraries are imported with the first certificate, not with this module.
Untrusted input: at most `CERTIFICATE_BYTES` are looked at, and the only errors are
those of the `CertificateError` family.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from kubetls.errors import CertificateError, MalformedCertificate
from kubetls.identity.names import IpAddress, escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography import x509

CERTIFICATE_BYTES: Final = 64 * 1024
"""OpenSSL stops a certificate message near 100 KiB; 3 000 names fit in 44 KiB."""

ENTRY_COUNT: Final = 4096
"""More names than any server presents; bounds the work behind one handshake."""

# GeneralName's context tags (RFC 5280 appendix A.2).
_KINDS: Final = {
    0: "otherName",
    1: "rfc822Name",
    2: "dNSName",
    4: "directoryName",
    6: "uniformResourceIdentifier",
    7: "iPAddress",
    8: "registeredID",
}

_KINDS_OF_CRYPTOGRAPHY: Final = {
    "OtherName": "otherName",
    "RFC822Name": "rfc822Name",
    "DNSName": "dNSName",
    "DirectoryName": "directoryName",
    "UniformResourceIdentifier": "uniformResourceIdentifier",
    "IPAddress": "iPAddress",
    "RegisteredID": "registeredID",
}
_COMPARED: Final = frozenset(
    {"dNSName", "iPAddress", "uniformResourceIdentifier", "rfc822Name"}
)


@dataclass(frozen=True, slots=True)
class PresentedIdentifiers:
    """What a certificate presents, each kind in certificate order.

    Attributes:
        dns_names: dNSName entries as they stand there; some may be no legal names.
        ip_addresses: iPAddress entries.
        uris: uniformResourceIdentifier entries; never matched.
        emails: rfc822Name entries; never matched.
        other: Kinds of the remaining entries (otherName, ...); never matched or shown.
    """

    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IpAddress, ...] = ()
    uris: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    _entries: tuple[tuple[str, str | IpAddress], ...] = field(default=(), repr=False)

    @property
    def entries(self) -> tuple[tuple[str, str | IpAddress], ...]:
        """Return all entries as (kind, value) in certificate order."""
        return self._entries

    def __len__(self) -> int:
        return len(self._entries)


def presented_identifiers(der: bytes) -> PresentedIdentifiers:
    """Read the subjectAltName of a certificate with two decoders that must agree.

    Args:
        der: The certificate, DER.

    Returns:
        All entries; empty when the certificate has no subjectAltName.

    Raises:
        MalformedCertificate: Broken or non-canonical DER, the extension twice or
            empty, an iPAddress not of 4 or 16 octets, a non-IA5 octet, a GeneralName
            that is not allowed there.
        CertificateError: The certificate is larger than we look at.
    """
    if not isinstance(der, bytes):
        raise MalformedCertificate("a certificate is passed as DER in bytes")
    if len(der) > CERTIFICATE_BYTES:
        reason = f"{len(der)} bytes, at most {CERTIFICATE_BYTES} are looked at"
        raise CertificateError(reason)
    certificate = _load(der)
    san = _san_of(certificate)
    if san is None:
        return PresentedIdentifiers()
    value, first = san
    second = list(_decoded_by_pyasn1(value))
    if first != second:
        raise MalformedCertificate("two decoders disagree about the subjectAltName")
    return _sorted_by_kind(second)


def _load(der: bytes) -> x509.Certificate:
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.extensions  # noqa: B018 - parses all of them, refuses doubles
    except x509.DuplicateExtension as error:
        reason = f"an extension stands twice ({error.oid.dotted_string})"
        raise MalformedCertificate(reason) from None
    except Exception as error:  # noqa: BLE001 - hostile bytes: one family out
        reason = f"not strict DER (RFC 5280): {escaped(str(error), 160)}"
        raise MalformedCertificate(reason) from None
    return certificate


def _san_of(
    certificate: x509.Certificate,
) -> tuple[bytes, list[tuple[str, Any]]] | None:
    """Return the extension's own bytes and cryptography's view of its entries."""
    from cryptography import x509

    try:
        extension = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return None
    value = _raw_extension(certificate.tbs_certificate_bytes)
    return value, [_entry(name) for name in extension.value]


def _entry(name: x509.GeneralName) -> tuple[str, Any]:
    # A kind that is not there is none that the other decoder knows either.
    kind = _KINDS_OF_CRYPTOGRAPHY.get(type(name).__name__, "")
    if kind not in _COMPARED:
        return kind, ""
    value = name.value
    if kind == "iPAddress" and not isinstance(
        value, ipaddress.IPv4Address | ipaddress.IPv6Address
    ):
        # 8 and 32 octets are address and mask, a name-constraint form.
        raise MalformedCertificate("an iPAddress is not of 4 or 16 octets")
    return kind, value


_SAN_OID: Final = bytes.fromhex("0603551d11")


def _raw_extension(tbs: bytes) -> bytes:
    """Return the octets inside the SAN extension's OCTET STRING.

    The certificate is known to be strict DER here, so a walk over
    TBSCertificate -> [3] -> SEQUENCE OF Extension finds it without a decoder.
    """
    _, start, end = _tlv(tbs, 0)
    position = start
    while position < end:
        tag, inner, after = _tlv(tbs, position)
        if tag == 0xA3:
            _, position, end = _tlv(tbs, inner)
            break
        position = after
    while position < end:
        _, inner, after = _tlv(tbs, position)
        if tbs.startswith(_SAN_OID, inner):
            tag, value, value_end = _tlv(tbs, inner + len(_SAN_OID))
            if tag == 0x01:
                _, value, value_end = _tlv(tbs, value_end)
            return tbs[value:value_end]
        position = after
    raise MalformedCertificate("two decoders disagree about the subjectAltName")


def _tlv(data: bytes, position: int) -> tuple[int, int, int]:
    """Return tag, start and end of the content of one DER element."""
    tag, length = data[position], data[position + 1]
    start = position + 2
    if length >= 0x80:
        count = length & 0x7F
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    return tag, start, start + length


def _decoded_by_pyasn1(value: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the entries as pyasn1 and pyasn1-modules read them; the second opinion.

    Entry by entry with the type that its tag asks for: the schema of the whole, a
    CHOICE in a SEQUENCE OF, takes half as long again (measured).
    """
    parts = _elements(value)
    try:
        names = [_name_of_pyasn1(part) for part in parts]
        encoded = b"".join(_encoded_by_pyasn1(name) for name in names)
    except Exception as error:  # noqa: BLE001 - hostile bytes: one family out
        reason = f"subjectAltName is not DER: {escaped(type(error).__name__)}"
        raise MalformedCertificate(reason) from None
    # pyasn1 takes non-minimal lengths, constructed tags and a tail, and the walk that
    # cut the entries is lenient too; none of them survives being encoded again.
    if _sequence(encoded) != value:
        raise MalformedCertificate("subjectAltName is not canonical DER (X.690)")
    if not names:
        reason = "subjectAltName is empty (RFC 5280 4.2.1.6: at least one)"
        raise MalformedCertificate(reason)
    for name in names:
        yield _entry_of_pyasn1(name)


def _elements(value: bytes) -> list[bytes]:
    """Cut a SEQUENCE into its elements, without judging any of it."""
    parts: list[bytes] = []
    try:
        _, position, end = _tlv(value, 0)
        while position < end:
            if len(parts) == ENTRY_COUNT:
                reason = f"more than {ENTRY_COUNT} names"
                raise CertificateError(reason)
            _, _, after = _tlv(value, position)
            parts.append(value[position:after])
            position = after
    except IndexError:
        raise MalformedCertificate("subjectAltName is cut off") from None
    return parts


def _sequence(content: bytes) -> bytes:
    """Return a DER SEQUENCE (X.690 8.1.3: the shortest form of length)."""
    length = len(content)
    if length < 0x80:
        return bytes((0x30, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((0x30, 0x80 | len(octets))) + octets + content


@lru_cache(maxsize=1)
def _schemas() -> tuple[dict[int, Any], Any]:
    """Return pyasn1-modules' primitive types by first octet, and one for the rest."""
    from pyasn1_modules import rfc5280

    general = rfc5280.GeneralName()
    types = (named.asn1Object for named in general.componentType.namedTypes)
    strings = {
        0x80 | kind.tagSet.superTags[-1].tagId: kind
        for kind in types
        if len(kind.tagSet.superTags) == 1 and kind.tagSet.superTags[-1].tagFormat == 0
    }
    return strings, general


def _name_of_pyasn1(part: bytes) -> Any:
    from pyasn1.codec.der import decoder

    strings, general = _schemas()
    # A tail would be missed when the names are encoded again.
    name, _ = decoder.decode(part, asn1Spec=strings.get(part[0], general))
    return name


def _encoded_by_pyasn1(name: Any) -> bytes:
    from pyasn1.codec.der import encoder

    encoded: bytes = encoder.encode(name)
    return encoded


def _entry_of_pyasn1(name: Any) -> tuple[str, Any]:
    # The tag says the kind; the name pyasn1 gives the alternative is not asked.
    kind = _KINDS.get(name.effectiveTagSet.superTags[-1].tagId)
    if kind is None:
        raise MalformedCertificate("a GeneralName of unknown kind")
    if kind == "iPAddress":
        octets = bytes(name)
        if len(octets) not in {4, 16}:
            reason = f"an iPAddress of {len(octets)} octets (RFC 5280: 4 or 16)"
            raise MalformedCertificate(reason)
        return kind, ipaddress.ip_address(octets)
    if kind in _COMPARED:
        return kind, bytes(name).decode("ascii")  # pyasn1's IA5String is ASCII
    return kind, ""


def _sorted_by_kind(entries: list[tuple[str, Any]]) -> PresentedIdentifiers:
    def values(kind: str) -> tuple[Any, ...]:
        return tuple(value for found, value in entries if found == kind)

    return PresentedIdentifiers(
        dns_names=values("dNSName"),
        ip_addresses=values("iPAddress"),
        uris=values("uniformResourceIdentifier"),
        emails=values("rfc822Name"),
        other=tuple(kind for kind, _ in entries if kind not in _COMPARED),
        _entries=tuple(entries),
    )
