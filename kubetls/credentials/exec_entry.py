"""Credential plugins as a kubeconfig names them, and what passes between us. Pure.

client.authentication.k8s.io, v1 and v1beta1: a program gets an ExecCredential in
$KUBERNETES_EXEC_INFO and prints one with a status. What it prints is a secret, and so
may be what it complains about: errors show its last words escaped and redacted.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from kubetls.credentials.client_certificate import parse_client_certificate
from kubetls.credentials.document import as_json
from kubetls.credentials.hidden import HiddenBytes, leaves_no_frame
from kubetls.credentials.token import parse_opaque_token
from kubetls.errors import CredentialError, ExecPluginError, KubeconfigError
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kubetls.credentials.anchors import TrustAnchors
    from kubetls.credentials.config import ClientCertificate
    from kubetls.credentials.document import Entry
    from kubetls.credentials.token import BoundToken

_GROUP: Final = "client.authentication.k8s.io"
_V1: Final = f"{_GROUP}/v1"
_VERSIONS: Final = (_V1, f"{_GROUP}/v1beta1")
_MODES: Final = ("Never", "IfAvailable", "Always")

INFO_VARIABLE: Final = "KUBERNETES_EXEC_INFO"

WORDS_CHARACTERS: Final = 300
"""How much of a plugin's complaint, or of an install hint, an error shows."""


@dataclass(frozen=True, slots=True)
class ExecEntry:
    """A user's exec entry.

    Attributes:
        place: File and path of the entry, for errors.
        version: API version the plugin is to speak.
        command: As it stands there: a path, or a name to look for.
        folder: Folder of the kubeconfig, which a path is relative to.
        args: Its arguments.
        env: Variables added to the environment.
        interactive_mode: "Never", "IfAvailable" or "Always".
        provides_cluster: Whether the plugin is told about the cluster.
        install_hint: What to do when it is not installed; may have several lines.
    """

    place: str
    version: str
    command: str
    folder: str
    args: tuple[str, ...] = field(repr=False)
    env: tuple[tuple[str, str], ...] = field(repr=False)
    interactive_mode: str
    provides_cluster: bool
    install_hint: str | None

    def fault(self, reason: str, *, hint: bool = False) -> ExecPluginError:
        """Return the error that names this plugin; with the install hint if asked."""
        name = escaped(self.command.rpartition("/")[2], 60)
        text = f"the credential plugin {name} {reason}"
        shown = None
        if hint and self.install_hint:
            shown = escaped(" ".join(self.install_hint.split()), WORDS_CHARACTERS)
        return ExecPluginError(self.place, text, shown)


@dataclass(frozen=True, slots=True)
class ExecCredential:
    """What a plugin printed.

    Attributes:
        token: A bearer token.
        client_certificate: A client certificate with its key.
        expires_at: Seconds since the epoch after which it is to be asked again; None:
            not before the server refuses it.
    """

    token: BoundToken | None
    client_certificate: ClientCertificate | None
    expires_at: float | None


# ------------------------------------------------------------------ the entry


@leaves_no_frame  # arguments and variables may be secret
def parse_exec_entry(user: Entry, folder: str) -> ExecEntry | None:
    """Read a user's exec entry; None when there is none.

    Raises:
        KubeconfigError: A field is missing, malformed or of an unknown version.
    """
    if not user.has("exec"):
        return None
    entry = user.body("exec", f"{user.path}.exec")
    version = _version(entry)
    command = entry.text("command")
    if command is None:
        raise KubeconfigError(entry.place("command"), "not set")
    _refuse_nul(entry, "command", command)
    return ExecEntry(
        place=user.place("exec"),
        version=version,
        command=command,
        folder=folder,
        args=_args(entry),
        env=_env(entry),
        interactive_mode=_mode(entry, version),
        provides_cluster=entry.flag("provideClusterInfo"),
        install_hint=entry.text("installHint"),
    )


def _version(entry: Entry) -> str:
    version = entry.text("apiVersion")
    if version in _VERSIONS:
        return version
    if version == f"{_GROUP}/v1alpha1":
        reason = (
            "v1alpha1 was removed from Kubernetes in 1.24; have the tool that wrote "
            f"this entry write it again, or set {_VERSIONS[1]} if the plugin speaks it"
        )
    else:
        shown = "not set" if version is None else f"{escaped(version)!r} is not known"
        reason = f"{shown}; set {_VERSIONS[0]} or {_VERSIONS[1]}, as the plugin speaks"
    raise KubeconfigError(entry.place("apiVersion"), reason)


def _mode(entry: Entry, version: str) -> str:
    mode = entry.text("interactiveMode")
    if mode is None and version != _V1:
        return "IfAvailable"
    if mode not in _MODES:
        raise KubeconfigError(
            entry.place("interactiveMode"), f"must be {', '.join(_MODES)}"
        )
    return mode


def _args(entry: Entry) -> tuple[str, ...]:
    found = entry.values.get("args") or []
    if not isinstance(found, list) or not all(isinstance(arg, str) for arg in found):
        raise KubeconfigError(entry.place("args"), "must be a list of text")
    for arg in found:
        _refuse_nul(entry, "args", arg)
    return tuple(found)


def _env(entry: Entry) -> tuple[tuple[str, str], ...]:
    found = entry.values.get("env") or []
    place = entry.place("env")
    if not isinstance(found, list) or not all(isinstance(e, dict) for e in found):
        raise KubeconfigError(place, "must be a list of name and value")
    variables = []
    for variable in found:
        name, value = variable.get("name"), variable.get("value") or ""
        if not isinstance(name, str) or not name or not isinstance(value, str):
            raise KubeconfigError(place, "each has a name and a value, both text")
        if "=" in name:
            raise KubeconfigError(place, "a name has no equals sign")
        _refuse_nul(entry, "env", name + value)
        variables.append((name, value))
    return tuple(variables)


def _refuse_nul(entry: Entry, name: str, text: str) -> None:
    if "\0" in text:
        raise KubeconfigError(entry.place(name), "has a NUL character")


# ------------------------------------------------------------------ what it is told


def cluster_info(cluster: Entry, anchors: TrustAnchors) -> dict[str, Any]:
    """Return what a plugin is told about the cluster, as kubectl tells it."""
    info: dict[str, Any] = {}
    for name in ("server", "tls-server-name"):
        text = cluster.text(name)
        if text is not None:
            info[name] = text
    if anchors.certificates:
        pem = anchors.pem.encode("ascii")
        info["certificate-authority-data"] = base64.b64encode(pem).decode("ascii")
    extension = cluster.listed("extensions").get(f"{_GROUP}/exec")
    if extension is not None:
        info["config"] = as_json(extension.values.get("extension"))
    return info


def exec_info(entry: ExecEntry, cluster: dict[str, Any], *, interactive: bool) -> str:
    """Return the value of $KUBERNETES_EXEC_INFO."""
    spec: dict[str, Any] = {"interactive": interactive}
    if entry.provides_cluster:
        spec["cluster"] = cluster
    return json.dumps(
        {"kind": "ExecCredential", "apiVersion": entry.version, "spec": spec}
    )


# ------------------------------------------------------------------ what it says


@leaves_no_frame
def parse_exec_credential(printed: HiddenBytes, entry: ExecEntry) -> ExecCredential:
    """Read what a plugin printed.

    Raises:
        ExecPluginError: It is no ExecCredential of the version asked for, or has no
            usable credential. Shows nothing of it.
    """
    document = _json(printed, entry)
    if document.get("kind") != "ExecCredential":
        raise entry.fault("printed something else than an ExecCredential")
    if document.get("apiVersion") != entry.version:
        raise entry.fault(f"did not answer as {entry.version}, which was asked for")
    status = document.get("status")
    if not isinstance(status, dict):
        raise entry.fault("printed an ExecCredential without status")
    texts = {name: _text(status, name, entry) for name in _STATUS}
    token, chain, key, ends = (texts[name] for name in _STATUS)
    if not (token or chain or key):
        raise entry.fault("printed neither a token nor a client certificate")
    if bool(chain) != bool(key):
        raise entry.fault("printed a client certificate or key without the other")
    expires_at = _seconds(ends, entry)
    try:
        return ExecCredential(
            _token(token, entry, expires_at),
            _certificate(chain, key, entry),
            expires_at,
        )
    except CredentialError as error:
        reason = f"printed a credential that cannot be used: {error.reason}"
        raise entry.fault(reason) from None


_STATUS: Final = (
    "token",
    "clientCertificateData",
    "clientKeyData",
    "expirationTimestamp",
)


def _json(printed: HiddenBytes, entry: ExecEntry) -> dict[str, Any]:
    try:
        document = json.loads(printed.content)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        document = None
    if not isinstance(document, dict):
        raise entry.fault("did not print one JSON object")
    return document


def _text(status: dict[str, Any], name: str, entry: ExecEntry) -> str:
    found = status.get(name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise entry.fault(f"printed a {name} that is no text")
    return found


def _token(text: str, entry: ExecEntry, expires_at: float | None) -> BoundToken | None:
    if not text:
        return None
    content = text.encode(errors="surrogatepass")
    return parse_opaque_token(content, entry.place, expires_at=expires_at)


def _certificate(chain: str, key: str, entry: ExecEntry) -> ClientCertificate | None:
    if not chain:
        return None
    parts = (HiddenBytes(text.encode(errors="surrogatepass")) for text in (chain, key))
    return parse_client_certificate(next(parts), entry.place, next(parts), entry.place)


def _seconds(text: str, entry: ExecEntry) -> float | None:
    if not text:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise entry.fault("printed an expirationTimestamp that is not RFC 3339")
    return moment.timestamp()


# ------------------------------------------------------------------ what it says aloud

_SECRETIVE: Final = re.compile(r"secret|token|passw|pwd|credential|key", re.IGNORECASE)
# Runs that no word of a language has: tokens, keys, digests, request ids.
_DENSE: Final = re.compile(r"[A-Za-z0-9+/=_.~-]{32,}")
_SHORT: Final = 4


def secret_texts(entry: ExecEntry, environ: Iterable[tuple[str, str]]) -> list[str]:
    """Return texts a plugin knows that must not show, longest first."""
    found = [value for _, value in entry.env]
    found += [value for name, value in environ if _SECRETIVE.search(name)]
    previous = ""
    for arg in entry.args:
        name, separator, value = arg.partition("=")
        if separator and _SECRETIVE.search(name):
            found.append(value)
        elif _SECRETIVE.search(previous) and previous.startswith("-"):
            found.append(arg)
        previous = arg
    texts = (" ".join(text.split()) for text in found)
    return sorted((text for text in texts if len(text) >= _SHORT), key=len)[::-1]


def last_words(said: bytes, secrets: Iterable[str]) -> str:
    """Return the end of what a plugin wrote to its standard error, fit to be shown."""
    text = " ".join(said.decode("utf-8", "replace").split())
    for secret in secrets:
        text = text.replace(secret, "[hidden]")
    text = _DENSE.sub(_hidden, text)
    cut = "..." if len(text) > WORDS_CHARACTERS else ""
    return cut + escaped(text[-WORDS_CHARACTERS:], 4 * WORDS_CHARACTERS)


def _hidden(run: re.Match[str]) -> str:
    return "[hidden]" if any(map(str.isdigit, run[0])) else run[0]
