"""`kubetls explain`: what a certificate presents, and what that means for one name.

Looks without trusting: a server gets a handshake and not one byte more.
"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kubetls.cli.facts import CertificateFacts, certificate_facts
from kubetls.cli.page import Answer, Exit
from kubetls.credentials.endpoint import endpoint_from_url
from kubetls.credentials.files import read_file
from kubetls.credentials.pem import CERTIFICATE, pem_blocks
from kubetls.errors import (
    CertificateError,
    ConfigError,
    CredentialEmpty,
    CredentialError,
    CredentialMissing,
)
from kubetls.identity.explain import PAGE_ENTRIES, Explanation, explain_identity
from kubetls.identity.names import ReferenceId, reference_identifier
from kubetls.identity.san import presented_identifiers
from kubetls.identity.verify import shown_entries
from kubetls.transport.probe import probe

if TYPE_CHECKING:
    from kubetls.credentials.endpoint import Endpoint

_FILE_BYTES: Final = 1024 * 1024


def explain(target: str, reference: str | None, timeout: float) -> Answer:
    """Explain the certificate of a server or in a file.

    Args:
        target: HOST[:PORT], a URL, or a file with a certificate, PEM or DER. With a
            slash in it, or when there is such a file, it is a file.
        reference: The name or address to insist on; that of the server by default.
        timeout: Seconds for connecting and for each step of the handshake.

    Raises:
        ConfigError, InvalidReference: The target or the reference cannot be meant.
    """
    wanted = None if reference is None else reference_identifier(reference)
    if _is_file(target):
        try:
            return _explained(target, _certificate_in(target), wanted)
        except CredentialError as error:
            return _unchecked(target, error.reason)
    endpoint = _endpoint(target, wanted)
    name = f"{endpoint.address.url_host}:{endpoint.port}"
    probed = probe(endpoint, timeout)
    if probed.certificate is None:
        what = {"name": "its name is unknown", "tcp": "it cannot be reached"}
        lead = what.get(probed.failed or "", "it presents no certificate")
        return _unchecked(name, f"{lead}: {probed.reason}")
    return _explained(name, probed.certificate, endpoint.reference)


def _is_file(target: str) -> bool:
    if "://" in target:
        return False
    return "/" in target or os.path.lexists(target)


def _endpoint(target: str, reference: ReferenceId | None) -> Endpoint:
    if "://" in target:
        return endpoint_from_url(target, "HOST", reference)
    # More than one colon and no bracket: an IPv6 address without a port.
    bare = target.count(":") > 1 and not target.startswith("[")
    host = f"[{target}]" if bare else target
    try:
        return endpoint_from_url(f"https://{host}", "HOST", reference)
    except ConfigError as error:
        reason = f"not HOST, HOST:PORT or a file ({error.reason})"
        raise ConfigError("HOST", reason) from None


def _certificate_in(file: str) -> bytes:
    """Return the first certificate of a file, DER."""
    content = read_file(str(Path(file).expanduser()), file, _FILE_BYTES)
    if content is None:
        raise CredentialMissing(file, "does not exist")
    is_pem = b"-----BEGIN" in content.content
    if not is_pem and content.content.startswith(b"\x30"):  # DER: a SEQUENCE
        return content.content
    for block in pem_blocks(content.content, file):
        if block.label == CERTIFICATE:
            return block.decoded(file)
    raise CredentialEmpty(file, "holds no certificate")


def _unchecked(target: str, reason: str) -> Answer:
    answer = Answer(Exit.UNCHECKED, data={"target": target, "error": reason})
    answer.add(f"{target}: {reason}")
    return answer


# ------------------------------------------------------------------ the page


def _explained(target: str, der: bytes, reference: ReferenceId | None) -> Answer:
    facts = certificate_facts(der, dt.datetime.now(dt.UTC))
    answer = Answer(Exit.FINE)
    answer.add(f"target     {target}")
    answer.data = {"target": target, "certificate": facts.data if facts else None}
    _add_facts(answer, facts)
    if reference is None:
        _add_names(answer, der)
    else:
        _add_explanation(answer, explain_identity(der, reference))
    if facts is not None and not facts.valid:
        answer.code = Exit.NO
        answer.add("remedy     issue a new certificate, this one is not valid now")
    return answer


def _add_facts(answer: Answer, facts: CertificateFacts | None) -> None:
    if facts is None:
        return
    answer.add(f"subject    {facts.subject or 'none'} (never compared with a name)")
    answer.add(f"issuer     {facts.issuer} (trust is not judged here: kubetls doctor)")
    answer.add(f"dates      {facts.dates}")
    answer.add(f"sha256     {facts.sha256}")


def _add_names(answer: Answer, der: bytes) -> None:
    """List what is presented where there is nothing to compare it with."""
    try:
        presented = presented_identifiers(der)
    except CertificateError as error:
        answer.code = Exit.NO
        answer.add(f"verdict    refused: {error.reason}")
        answer.data |= {"verdict": "refused", "reason": error.reason, "entries": []}
        return
    answer.data["verdict"] = None
    answer.data["entries"] = [
        {"kind": kind, "text": str(value)} for kind, value in presented.entries
    ]
    answer.add("verdict    none: name what to compare with, --reference NAME")
    answer.add("presented")
    for text in shown_entries(presented, PAGE_ENTRIES):
        answer.add(f"  {text}")


def _add_explanation(answer: Answer, found: Explanation) -> None:
    if found.verdict != "match":
        answer.code = Exit.NO
    reference = {"kind": found.reference.kind, "text": found.reference.text}
    entries: list[dict[str, Any]] = [
        {
            "kind": entry.kind,
            "text": entry.text,
            "matches": entry.matches,
            "why": entry.why,
        }
        for entry in found.entries
    ]
    answer.data |= {
        "reference": reference,
        "verdict": found.verdict,
        "reason": found.reason,
        "remedy": found.remedy,
        "entries": entries,
    }
    for line in str(found).splitlines():
        mark = line[:3] if line.startswith(("  + ", "  - ")) else ""
        answer.add(line.removeprefix(mark), mark)
