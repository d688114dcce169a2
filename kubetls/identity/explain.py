"""Why a certificate is, or is not, valid for a reference: a page a person understands.

Says the same as `verify_identity`, entry by entry, and never raises for a certificate:
broken ones are what people come here with.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final, Literal

from kubetls.errors import CertificateError
from kubetls.identity.names import (
    DnsId,
    IpAddress,
    IpId,
    ReferenceId,
    escaped,
    presented_pattern,
    reference_identifier,
)
from kubetls.identity.san import PresentedIdentifiers, presented_identifiers
from kubetls.identity.verify import matching_entry

PAGE_ENTRIES: Final = 40
"""Entries a page shows; the verdict is over all of them."""


@dataclass(frozen=True, slots=True)
class ExplainedEntry:
    """One presented entry.

    Attributes:
        kind: dNSName, iPAddress, ...
        text: Its value, escaped and shortened.
        matches: True when it alone makes the verdict a match.
        why: One sentence.
    """

    kind: str
    text: str
    matches: bool
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a certificate presents, and what that means for one reference.

    Attributes:
        reference: What was insisted on.
        verdict: "match", "mismatch" or "refused" (the certificate as a whole).
        reason: Why, in one sentence.
        remedy: What to do, or "" for a match.
        entries: Every presented entry, in certificate order.
    """

    reference: ReferenceId
    verdict: Literal["match", "mismatch", "refused"]
    reason: str
    remedy: str
    entries: tuple[ExplainedEntry, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"reference  {self.reference.kind} {self.reference.text}",
            f"verdict    {self.verdict}: {self.reason}",
        ]
        if self.entries:
            lines.append("presented")
        width = max((len(entry.text) for entry in self.entries), default=0)
        lines += [
            f"  {'+' if entry.matches else '-'} {entry.kind:<10} "
            f"{entry.text:<{min(width, 48)}}  {entry.why}"
            for entry in self.entries[:PAGE_ENTRIES]
        ]
        if len(self.entries) > PAGE_ENTRIES:
            lines.append(f"  ... and {len(self.entries) - PAGE_ENTRIES} more")
        if self.remedy:
            lines.append(f"remedy     {self.remedy}")
        return "\n".join(lines)


def explain_identity(
    der: bytes, reference: str | IpAddress | ReferenceId
) -> Explanation:
    """Explain what `verify_identity` decides for this certificate and reference.

    Args:
        der: The certificate, DER; anything else is explained as refused.
        reference: What the caller insists on.

    Returns:
        The explanation; `str()` of it is a page.

    Raises:
        InvalidReference: The reference is no legal name or address.
    """
    wanted = reference_identifier(reference)
    try:
        presented = presented_identifiers(der)
    except CertificateError as error:
        remedy = "issue a certificate whose subjectAltName follows RFC 5280 4.2.1.6"
        return Explanation(wanted, "refused", error.reason, remedy)
    entries = tuple(
        _explained(kind, value, wanted) for kind, value in presented.entries
    )
    matched = matching_entry(presented, wanted)
    if matched is not None:
        reason = f"the entry {escaped(matched)} matches"
        return Explanation(wanted, "match", reason, "", entries)
    reason, remedy = _mismatch(presented, wanted)
    return Explanation(wanted, "mismatch", reason, remedy, entries)


def _explained(
    kind: str, value: str | IpAddress, reference: ReferenceId
) -> ExplainedEntry:
    text = escaped(str(value))
    if kind == "dNSName" and isinstance(value, str):
        matches, why = _explained_name(value, reference)
    elif isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address):
        matches, why = _explained_address(value, reference)
    else:
        matches, why = False, f"{kind} entries never identify a host (RFC 9525 2)"
    return ExplainedEntry(kind, text, matches, why)


def _explained_name(name: str, reference: ReferenceId) -> tuple[bool, str]:
    pattern = presented_pattern(name)
    if isinstance(pattern, str):
        return False, f"ignored: {pattern}"
    if isinstance(reference, IpId):
        return False, "a dNSName never matches an address"
    if pattern.matches(reference):
        return True, "matches"
    if pattern.wildcard and reference.labels[-len(pattern.labels) :] == pattern.labels:
        return False, "a star stands for exactly one label"
    return False, "another name"


def _explained_address(value: IpAddress, reference: ReferenceId) -> tuple[bool, str]:
    if isinstance(reference, DnsId):
        return False, "an iPAddress never matches a name"
    wanted = ipaddress.ip_address(reference.octets)
    if value == wanted:
        return True, "matches octet for octet"
    if getattr(value, "ipv4_mapped", None) == wanted or value == getattr(
        wanted, "ipv4_mapped", None
    ):
        return False, "IPv4-mapped addresses are not folded: the octets differ"
    return False, "another address"


def _mismatch(
    presented: PresentedIdentifiers, reference: ReferenceId
) -> tuple[str, str]:
    """Return why nothing matched, and the first thing to do about it."""
    if not len(presented):
        return (
            "it has no subjectAltName; the common name is not read (RFC 9525 2)",
            f"issue it with {_entry_for(reference)}",
        )
    if isinstance(reference, IpId):
        if reference.text in presented.dns_names:
            return (
                "the address stands in a dNSName, where it means nothing",
                f"issue it with {_entry_for(reference)} instead",
            )
        if not presented.ip_addresses:
            return (
                "it presents no iPAddress at all",
                f"issue it with {_entry_for(reference)}{_or_name(presented)}",
            )
    elif not presented.dns_names:
        first = presented.ip_addresses[0] if presented.ip_addresses else None
        other = f", or connect to {first}" if first else ""
        return (
            "it presents no dNSName at all",
            f"issue it with {_entry_for(reference)}{other}",
        )
    return (
        f"no entry matches {reference.text}",
        f"issue it with {_entry_for(reference)}{_or_name(presented)}",
    )


def _entry_for(reference: ReferenceId) -> str:
    entry = "iPAddress" if isinstance(reference, IpId) else "dNSName"
    return f"{entry} {reference.text}"


def _or_name(presented: PresentedIdentifiers) -> str:
    # Many certificates name localhost, by the way; what they are for comes first.
    for name in sorted(presented.dns_names, key=_is_localhost):
        pattern = presented_pattern(name)
        if not isinstance(pattern, str) and not pattern.wildcard:
            return f", or set tls-server-name to {escaped(name)}"
    return ""


def _is_localhost(name: str) -> bool:
    return name.lower() == "localhost"
