r"""Names and addresses: the grammar of reference and presented identifiers (RFC 9525).

The reference identifier is parsed once, into an `IpId` (octets) or a `DnsId` (labels),
and everything later (dialling, server name, Host header, match, error text) uses that
one object. Text passed along and guessed at by each layer is how checks get lost.

    reference text       is                         note
    10.0.0.1             IpId                       four numbers, no leading zero
    fd00::1              IpId                       compared as sixteen octets
    kubernetes.default.  DnsId kubernetes.default   one final dot: the absolute form
    010.0.0.1  127.1  0x7f.0.0.1  10.0.0.1.         refused, resolvers differ on them
    [::1]  fe80::1%eth0  host:443  a..b  -a.b  a_b  refused
    *.a.b  münchen.example  (empty)                 refused

Pure: no socket, no resolver, no locale. Untrusted input: the work is linear in a text
that is cut off at 253 octets, and `InvalidReference` is the only error.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from kubetls.errors import InvalidReference

NAME_CHARACTERS: Final = 253
"""Longest name in presentation form (RFC 1035 section 2.3.4; 255 on the wire)."""

# \Z, not $: $ also matches before a final newline.
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")
_OCTET: Final = r"(?:0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])"
_IPV4: Final = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}\Z")
# A last label like these makes URL parsers and inet_aton see an address
# (RFC 1123 section 2.1; WHATWG URL, "ends in a number").
_NUMERIC: Final = re.compile(r"(?:[0-9]+|0[xX][0-9A-Fa-f]*)\Z")

ESCAPED_CHARACTERS: Final = 80
"""How much of a refused or presented text an error shows."""


def escaped(text: str | bytes, limit: int = ESCAPED_CHARACTERS) -> str:
    """Return text that is safe to show: printable ASCII, shortened."""
    if isinstance(text, bytes):
        text = text[: limit + 1].decode("latin-1")
    shown = "".join(
        char if " " <= char <= "~" and char != "\\" else _escape(char)
        for char in text[:limit]
    )
    return shown + "..." if len(text) > limit else shown


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


@dataclass(frozen=True, slots=True)
class DnsId:
    """A DNS name to insist on (DNS-ID, RFC 9525 section 2).

    Attributes:
        labels: Its labels in lower case, left to right.
    """

    labels: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Return "DNS"."""
        return "DNS"

    @property
    def text(self) -> str:
        """Return the canonical text: lower case, no final dot."""
        return ".".join(self.labels)

    @property
    def server_name(self) -> str | None:
        """Return what server name indication carries (RFC 6066 section 3)."""
        return self.text

    @property
    def url_host(self) -> str:
        """Return the host as it stands in a URL."""
        return self.text

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class IpId:
    """An IP address to insist on (IP-ID, RFC 9525 section 2).

    Attributes:
        octets: Four or sixteen octets, network order. An IPv4-mapped IPv6 address
            keeps its sixteen: it never equals the four (RFC 9525 section 6.4).
    """

    octets: bytes

    @property
    def kind(self) -> str:
        """Return "IP"."""
        return "IP"

    @property
    def text(self) -> str:
        """Return the canonical text, IPv6 compressed and without brackets."""
        return str(ipaddress.ip_address(self.octets))

    @property
    def server_name(self) -> str | None:
        """Return None: an address never goes into server name indication.

        The check has the same strength with and without it.
        """
        return None

    @property
    def url_host(self) -> str:
        """Return the host as it stands in a URL, IPv6 in brackets."""
        return f"[{self.text}]" if len(self.octets) == 16 else self.text

    def __str__(self) -> str:
        return self.text


ReferenceId = DnsId | IpId

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def reference_identifier(value: str | IpAddress | ReferenceId) -> ReferenceId:
    """Parse what the caller insists on, once.

    Args:
        value: A DNS name, an IP address as text or from `ipaddress`, or an
            identifier that was parsed before.

    Returns:
        A `DnsId` or an `IpId`.

    Raises:
        InvalidReference: The text is neither; the reason says which rule it breaks.
    """
    if isinstance(value, DnsId | IpId):
        return value
    if isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address):
        if getattr(value, "scope_id", None):
            raise InvalidReference(str(value), "a zone id is never in a certificate")
        return IpId(value.packed)
    if not isinstance(value, str):
        raise InvalidReference(type(value).__name__, "pass text or an ipaddress object")
    if _IPV4.match(value):
        return IpId(ipaddress.IPv4Address(value).packed)
    if ":" in value:
        return _ipv6(value)
    return _dns(value)


def _ipv6(text: str) -> IpId:
    shown = escaped(text)
    if "[" in text or "]" in text:
        raise InvalidReference(shown, "brackets belong to URLs, pass the bare address")
    if "%" in text:
        raise InvalidReference(shown, "a zone id is never in a certificate, drop it")
    try:
        return IpId(ipaddress.IPv6Address(text).packed)
    except ValueError:
        reason = "not an IPv6 address; a port or scheme does not belong here"
        raise InvalidReference(shown, reason) from None


def _dns(text: str) -> DnsId:
    shown = escaped(text)
    if not text:
        raise InvalidReference(shown, "empty; an empty name would mean no check")
    if not text.isascii():
        reason = "not ASCII; pass the A-label form (xn--...)"
        raise InvalidReference(shown, reason)
    name = text.removesuffix(".")
    if "*" in name:
        raise InvalidReference(shown, "a wildcard is for certificates only")
    labels = _labels(name)
    if isinstance(labels, str):
        raise InvalidReference(shown, labels)
    return DnsId(labels)


def _labels(name: str) -> tuple[str, ...] | str:
    """Return the labels of a legal name in lower case, or the rule it breaks."""
    if len(name) > NAME_CHARACTERS:
        return f"longer than {NAME_CHARACTERS} characters (RFC 1035 section 2.3.4)"
    labels = name.lower().split(".")
    for label in labels:
        if not _LABEL.match(label):
            if not label:
                return "an empty label"
            return (
                f"label {escaped(label)!r} is not 1 to 63 letters, digits and inner "
                "hyphens (RFC 1123 section 2.1)"
            )
    if _NUMERIC.match(labels[-1]):
        return "the last label is a number, so resolvers may read an address"
    return tuple(labels)


@dataclass(frozen=True, slots=True)
class DnsPattern:
    """A presented dNSName that follows the grammar (RFC 9525 section 6.3).

    Attributes:
        labels: Labels in lower case, without the star.
        wildcard: True when one whole left-most label is a star.
    """

    labels: tuple[str, ...]
    wildcard: bool

    def matches(self, reference: DnsId) -> bool:
        """Tell whether this name covers the reference; a star is exactly one label."""
        if self.wildcard:
            return reference.labels[1:] == self.labels
        return reference.labels == self.labels


def presented_pattern(text: str) -> DnsPattern | str:
    """Parse one presented dNSName.

    Returns:
        The pattern, or, when the entry has to be ignored, the rule it breaks. A final
        dot, a partial star and a star before fewer than two labels are ignored.
    """
    wildcard = text.startswith("*.")
    name = text[2:] if wildcard else text
    if "*" in name:
        return "a star must be the whole left-most label (RFC 9525 section 6.3)"
    if name.endswith("."):
        return "a final dot is no part of a dNSName (RFC 5280 section 4.2.1.6)"
    labels = _labels(name) if name.isascii() else "not ASCII"
    if isinstance(labels, str):
        return labels
    if wildcard and len(labels) < 2:
        return "a star needs at least two labels behind it"
    return DnsPattern(labels, wildcard)
