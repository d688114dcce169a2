"""The doctor's checks: each looks at one thing and says what it found.

They reach for credentials one by one where a session takes them as a whole, so that a
missing token does not hide a wrong CA.
"""

from __future__ import annotations

import datetime as dt
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kubetls.cli.facts import certificate_facts
from kubetls.cli.page import Finding, span, texts
from kubetls.cli.remedies import chain_remedy, request_remedy
from kubetls.cli.whoami import ANONYMOUS, reviewed_user
from kubetls.client.paths import path
from kubetls.client.shapes import mapping, mappings
from kubetls.credentials.pem import pem_blocks
from kubetls.errors import (
    ChainRefused,
    Forbidden,
    KubeTLSError,
    Unauthorized,
)
from kubetls.identity.explain import explain_identity
from kubetls.transport.connection import Guard, VerifiedConnection
from kubetls.transport.context import locked_context
from kubetls.transport.probe import probe

if TYPE_CHECKING:
    from kubetls.client.session import Session
    from kubetls.credentials.anchors import TrustAnchors
    from kubetls.credentials.config import ClientCertificate, Config
    from kubetls.credentials.endpoint import Endpoint
    from kubetls.credentials.token import BoundToken

LISTED_RULES: Final = 20
"""Rules a page lists; JSON has them all."""


@dataclass(slots=True)
class Patient:
    """What is known of a configuration; None for what is missing or broken."""

    endpoint: Endpoint | None = None
    anchors: TrustAnchors | None = None
    token: BoundToken | None = None
    client_certificate: ClientCertificate | None = None
    config: Config | None = None
    credentials_read: bool = False


def refused(check: str, error: KubeTLSError) -> Finding:
    """Return the finding for an error that says all there is to say."""
    return Finding(check, "fail", str(error))


# ------------------------------------------------------------------ credentials


def token_finding(token: BoundToken) -> Finding:
    """Judge a token's dates, which it says itself."""
    now = time.time()
    late, ends = token.warn_after, token.expires_at
    if ends is not None and ends <= now:
        text = f"expired {span(now - ends)} ago, by its own word"
        remedy = (
            "get a new one: the kubelet or the tool that wrote it does not renew it"
        )
        return Finding("token", "fail", text, remedy)
    if late is not None and late <= now:
        text = f"should have been renewed {span(now - late)} ago"
        remedy = "see why the kubelet does not renew it; some clusters refuse it now"
        return Finding("token", "warn", text, remedy)
    if ends is None:
        return Finding("token", "ok", "there; it does not say when it ends")
    return Finding("token", "ok", f"there; ends in {span(ends - now)}")


def client_certificate_finding(certificate: ClientCertificate) -> Finding:
    """Judge a client certificate's dates."""
    block = next(pem_blocks(certificate.certificate_pem, "client-certificate"))
    now = dt.datetime.now(dt.UTC)
    facts = certificate_facts(block.decoded("client-certificate"), now)
    if facts is None:
        return Finding("client certificate", "fail", "is not strict DER")
    text = f"{facts.subject}, {facts.dates}"
    if facts.valid:
        return Finding("client certificate", "ok", text)
    remedy = "get a new one (kubeadm certs renew admin.conf, or who issued it)"
    return Finding("client certificate", "fail", text, remedy)


def anchors_finding(anchors: TrustAnchors) -> Finding:
    """Judge the CA bundle's dates."""
    if anchors.system:
        return Finding("CA", "ok", "the operating system's store, as asked for")
    now = dt.datetime.now(dt.UTC)
    facts = [certificate_facts(der, now) for der in anchors.certificates]
    lines = tuple(f"{fact.subject}, {fact.dates}" for fact in facts if fact)
    count = len(anchors.certificates)
    text = f"{count} certificate{'' if count == 1 else 's'}"
    valid = sum(1 for fact in facts if fact and fact.valid)
    if not valid:
        text += ", none of them valid now"
        return Finding("CA", "fail", text, "publish the cluster's current CA", lines)
    if valid < count:
        text += f", {count - valid} not valid now"
        return Finding("CA", "warn", text, "take the old ones out of it", lines)
    return Finding("CA", "ok", text, lines=lines)


# ------------------------------------------------------------------ the server


def server_findings(patient: Patient, timeout: float) -> list[Finding]:
    """Reach the server, look at its certificate, judge name and path."""
    endpoint = patient.endpoint
    if endpoint is None:
        return []
    probed = probe(endpoint, timeout)
    if probed.failed == "name":
        text = f"{endpoint.address} is unknown: {probed.reason}"
        return [Finding("reachability", "fail", text, "see DNS, or the server's name")]
    if probed.failed == "tcp":
        text = f"{endpoint.url}: {probed.reason}"
        remedy = "see that the server runs there, and what lies between (NetworkPolicy)"
        return [Finding("reachability", "fail", text, remedy)]
    reached = Finding("reachability", "ok", f"{endpoint.url} takes connections")
    if probed.certificate is None:
        remedy = "see that an API server, and no proxy or plain HTTP, listens there"
        return [reached, Finding("handshake", "fail", probed.reason, remedy)]
    facts = certificate_facts(probed.certificate, dt.datetime.now(dt.UTC))
    seen = f"a certificate, {facts.dates}" if facts else "a certificate that is broken"
    return [
        reached,
        Finding("handshake", "ok", seen),
        _identity_finding(endpoint, probed.certificate),
        _path_finding(patient, endpoint, timeout),
    ]


def _identity_finding(endpoint: Endpoint, der: bytes) -> Finding:
    found = explain_identity(der, endpoint.reference)
    text = f"{endpoint.reference.kind} {endpoint.reference}: {found.reason}"
    if found.verdict == "match":
        return Finding("identity", "ok", text)
    lines = tuple(
        f"{entry.kind} {entry.text}: {entry.why}" for entry in found.entries[:8]
    )
    return Finding("identity", "fail", text, found.remedy, lines)


def _path_finding(patient: Patient, endpoint: Endpoint, timeout: float) -> Finding:
    """Judge trust anchors, dates and usage: one verified handshake, nothing sent."""
    if patient.anchors is None:
        return Finding("trust", "skipped", "without a CA nothing is trusted")
    try:
        context = locked_context(
            patient.anchors,
            endpoint.reference,
            address=endpoint.address,
            client_certificate=patient.client_certificate,
        )
        guard = Guard(endpoint, context, lambda _: None)
        host = endpoint.address.url_host
        connection = VerifiedConnection(
            host, endpoint.port, timeout=timeout, guard=guard
        )
        with closing(connection):
            connection.connect()
    except ChainRefused as error:
        text = f"OpenSSL refused: {error.reason} (code {error.openssl_code})"
        return Finding("trust", "fail", text, chain_remedy(error))
    except KubeTLSError as error:
        # The name was judged above; OpenSSL looks at it after the path.
        return Finding("trust", "skipped", f"not reached: {error}")
    except Exception as error:  # noqa: BLE001 - urllib3's own, or the system's
        return Finding("trust", "unknown", f"the connection was lost: {error}")
    return Finding("trust", "ok", "its certificate leads to the CA")


# ------------------------------------------------------------------ the API


def api_findings(session: Session, data: dict[str, Any]) -> list[Finding]:
    """Ask the server who we are and what we may do."""
    try:
        user = reviewed_user(session)
    except KubeTLSError as error:
        return [_request_finding("authentication", error)]
    data["user"] = user
    name = user["username"]
    if name == ANONYMOUS:
        text = "the server takes us for nobody"
        remedy = "configure a credential, or see why the server ignores it"
        return [Finding("authentication", "fail", text, remedy)]
    return [
        Finding("authentication", "ok", f"the server takes us for {name}"),
        _rules_finding(session, data),
    ]


def _rules_finding(session: Session, data: dict[str, Any]) -> Finding:
    version = "authorization.k8s.io/v1"
    body = {
        "apiVersion": version,
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": session.namespace},
    }
    try:
        answered = session.post(path(version, "selfsubjectrulesreviews"), body)
    except KubeTLSError as error:
        return _request_finding("authorization", error)
    status = mapping(answered, "status")
    rules = [rule for rule in mappings(status, "resourceRules") if rule]
    data["rules"] = rules
    lines = sorted({_rule(rule) for rule in rules} - {""})
    more = len(lines) - LISTED_RULES
    shown = (*lines[:LISTED_RULES], *([f"... and {more} more"] if more > 0 else []))
    where = f"in namespace {session.namespace}"
    if not lines:
        text = f"nothing is allowed {where} but to ask for this"
        remedy = "grant what the program needs by a Role and a RoleBinding"
        return Finding("authorization", "warn", text, remedy)
    text = f"{len(lines)} rule{'' if len(lines) == 1 else 's'} {where}"
    if status.get("incomplete"):
        text += "; an authorizer does not list all of its rules"
    return Finding("authorization", "ok", text, lines=shown)


def _rule(rule: dict[str, Any]) -> str:
    """Return a rule as text, "" for those that every user has."""
    groups = texts(rule.get("apiGroups"))
    if groups and set(groups) <= {"authorization.k8s.io", "authentication.k8s.io"}:
        return ""
    resources = [
        f"{resource}.{group}" if group else resource
        for group in groups
        for resource in texts(rule.get("resources"))
    ]
    names = ", ".join(texts(rule.get("resourceNames")))
    verbs = ",".join(texts(rule.get("verbs")))
    return f"{verbs} {', '.join(resources)}" + (f" named {names}" if names else "")


def _request_finding(check: str, error: KubeTLSError) -> Finding:
    if isinstance(error, Unauthorized | Forbidden):
        return Finding(check, "fail", str(error), request_remedy(error))
    return Finding(check, "unknown", str(error), request_remedy(error))
