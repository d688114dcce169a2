"""Who am I outside a pod: kubeconfig files, as kubectl reads them.

One file, one context: the cluster, the user and the namespace it names. Everything
that would weaken the check of the server is refused by name with a remedy; everything
not supported yet is refused as well, because to ignore it would send requests as
somebody else. Unknown fields are passed over, as kubectl does.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from kubetls.credentials.anchors import (
    BUNDLE_BYTES,
    SYSTEM_ANCHORS,
    TrustAnchors,
    parse_anchors,
)
from kubetls.credentials.config import ClientCertificate, Config, Generation
from kubetls.credentials.endpoint import endpoint_from_url
from kubetls.credentials.token import BoundToken, parse_opaque_token
from kubetls.errors import InsecureConfigRefused, KubeconfigError

if TYPE_CHECKING:
    from collections.abc import Callable

FILE_BYTES: Final = 1024 * 1024
"""A kubeconfig of hundreds of clusters stays far below."""

_TYPES: Final = {str: "text", bool: "true or false", dict: "a mapping", list: "a list"}

_REFUSED_USER_FIELDS: Final = {
    "auth-provider": "removed from Kubernetes in 1.26; use an exec plugin or a token",
    "username": "basic authentication was removed from Kubernetes in 1.19",
    "password": "basic authentication was removed from Kubernetes in 1.19",
    "as": "impersonation is not supported; it would be wrong to act as yourself",
}


class _Fields:
    """One mapping of the file, read field by field with its path in errors."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise KubeconfigError(path, "must be a mapping")
        self.value: dict[Any, Any] = value
        self.path = path

    def field(self, name: str) -> str:
        return f"{self.path}.{name}"

    def get(self, name: str, kind: type) -> Any:
        """Return a field, None when absent or empty; another type is an error."""
        value = self.value.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, kind):
            raise KubeconfigError(self.field(name), f"must be {_TYPES[kind]}")
        return value


@dataclass(frozen=True, slots=True)
class _Location:
    """The file, and how far it may lead to others."""

    path: Path
    inline_only: bool

    def content(self, fields: _Fields, name: str, cap: int) -> tuple[bytes, str] | None:
        """Return bytes and source of NAME-data or NAME; None when both are absent."""
        inline = fields.get(f"{name}-data", str)
        named = fields.get(name, str)
        if inline is not None and named is not None:
            reason = f"{name} and {name}-data contradict each other, keep one"
            raise KubeconfigError(fields.field(name), reason)
        if inline is not None:
            return _base64(inline, fields.field(f"{name}-data"))
        if named is not None:
            return self.file(named, fields.field(name), cap)
        return None

    def file(self, named: str, field: str, cap: int) -> tuple[bytes, str]:
        """Read a file the kubeconfig names, relative to its own folder."""
        if self.inline_only:
            raise KubeconfigError(field, 'names a file, and files="inline-only"')
        path = self.path.parent / Path(named).expanduser()
        return _read(path, field, cap), str(path)


@dataclass(frozen=True, slots=True)
class KubeconfigSource:
    """One user and cluster of a kubeconfig file.

    Attributes:
        location: The file.
        user: Name of the user entry, "" for none.
        cluster: Name of the cluster entry.
        trust: "system" when the operating system's store was asked for.
    """

    location: _Location
    user: str
    cluster: str
    trust: Literal["system"] | None

    def read(self) -> Generation:
        """Read the file again, and whatever it names."""
        document = _document(self.location.path)
        cluster = _entry(document, "clusters", self.cluster, "cluster")
        anchors = self._anchors(cluster)
        if not self.user:
            return Generation(anchors)
        user = _entry(document, "users", self.user, "user")
        _refuse_unsupported(user)
        return Generation(
            anchors, self._token(user), _client_certificate(user, self.location)
        )

    def _anchors(self, cluster: _Fields) -> TrustAnchors:
        name = "certificate-authority"
        found = self.location.content(cluster, name, BUNDLE_BYTES)
        if found is not None:
            return parse_anchors(*found)
        if self.trust == "system":
            return SYSTEM_ANCHORS
        reason = (
            "names no CA; add certificate-authority-data, or, for a server with a "
            'publicly trusted certificate, kubeconfig(trust="system")'
        )
        raise KubeconfigError(cluster.field(name), reason)

    def _token(self, user: _Fields) -> BoundToken | None:
        # kubectl: tokenFile wins over token.
        named = user.get("tokenFile", str)
        if named is not None:
            field = user.field("tokenFile")
            content, path = self.location.file(named, field, 64 * 1024)
            return parse_opaque_token(content, path)
        inline = user.get("token", str)
        if inline is None:
            return None
        return parse_opaque_token(inline.encode(), user.field("token"))


def kubeconfig(
    path: str | Path | None = None,
    context: str | None = None,
    *,
    trust: Literal["system"] | None = None,
    exec: Literal["allow", "refuse"] | Callable[..., bool] = "allow",  # noqa: A002 - the kubeconfig's own word
    files: Literal["allow", "inline-only"] = "allow",
) -> Config:
    """Read one context of a kubeconfig file.

    Args:
        path: The file; None for ~/.kube/config.
        context: Name of a context; None for current-context.
        trust: "system" to trust the operating system's store when the cluster names
            no CA, and only then.
        exec: Whether credential plugins may run. They are not supported yet: a user
            with an exec entry is refused whatever is passed.
        files: "inline-only" refuses entries that name other files, for kubeconfigs
            from elsewhere: one with its own CA and a tokenFile of this machine would
            send that token to a stranger.

    Returns:
        A config whose source reads the file again whenever asked.

    Raises:
        KubeconfigError: An entry is missing, malformed or not supported; names it.
        InsecureConfigRefused: insecure-skip-tls-verify is true.
        CredentialError: A certificate, key or token breaks its grammar.
    """
    del exec
    if trust not in {None, "system"}:
        raise KubeconfigError("trust", 'must be None or "system"')
    if files not in {"allow", "inline-only"}:
        raise KubeconfigError("files", 'must be "allow" or "inline-only"')
    file = Path(path).expanduser() if path else Path.home() / ".kube" / "config"
    document = _document(file)
    name = context or document.get("current-context", str)
    if name is None:
        reason = "not set, and no context was asked for"
        raise KubeconfigError(f"{file}: current-context", reason)
    chosen = _entry(document, "contexts", name, "context")
    cluster_name = chosen.get("cluster", str)
    if cluster_name is None:
        raise KubeconfigError(chosen.field("cluster"), "not set")
    cluster = _entry(document, "clusters", cluster_name, "cluster")
    _refuse_insecure(cluster)
    server = cluster.get("server", str)
    if server is None:
        raise KubeconfigError(cluster.field("server"), "not set")
    server_name = cluster.get("tls-server-name", str)
    source = KubeconfigSource(
        _Location(file, files == "inline-only"),
        chosen.get("user", str) or "",
        cluster_name,
        trust,
    )
    source.read()  # fails now rather than at the first request
    return Config(
        endpoint_from_url(server, cluster.field("server"), server_name),
        source,
        chosen.get("namespace", str) or "default",
        f"kubeconfig {file} context {name}",
    )


def _document(file: Path) -> _Fields:
    import yaml

    text = _read(file, str(file), FILE_BYTES)
    try:
        # Aliases would let a few lines expand without bound, and no kubeconfig
        # has them: events are looked at before anything is built.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise KubeconfigError(str(file), "YAML aliases are refused")
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, KubeconfigError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}" if mark else ""
        raise KubeconfigError(str(file), f"not YAML{where}") from None
    fields = _Fields(document, str(file))
    fields.path = f"{file}: "
    kind = document.get("kind", "Config")
    if kind != "Config":
        raise KubeconfigError(str(file), "kind must be Config")
    return fields


def _entry(document: _Fields, listing: str, name: str, body: str) -> _Fields:
    """Return one named entry of clusters, users or contexts."""
    entries = document.value.get(listing) or []
    where = f"{document.path}{listing}"
    if not isinstance(entries, list):
        raise KubeconfigError(where, "must be a list")
    for number, entry in enumerate(entries):
        fields = _Fields(entry, f"{where}[{number}]")
        # The first of a name wins, as in kubectl.
        if fields.value.get("name") == name:
            return _Fields(fields.value.get(body) or {}, f"{where}[{name}].{body}")
    raise KubeconfigError(where, f"has no entry named {name!r}")


def _refuse_insecure(cluster: _Fields) -> None:
    field = "insecure-skip-tls-verify"
    if cluster.get(field, bool):
        reason = (
            "refused: whoever answers would get your credentials; name the CA in "
            "certificate-authority-data, and tls-server-name if the name differs"
        )
        raise InsecureConfigRefused(cluster.field(field), reason)
    if cluster.get("proxy-url", str):
        raise KubeconfigError(cluster.field("proxy-url"), "proxies are not supported")


def _refuse_unsupported(user: _Fields) -> None:
    for name, reason in _REFUSED_USER_FIELDS.items():
        if user.value.get(name):
            raise KubeconfigError(user.field(name), reason)
    if user.value.get("exec"):
        reason = "credential plugins are not supported yet; use a token or certificate"
        raise KubeconfigError(user.field("exec"), reason)


def _client_certificate(user: _Fields, where: _Location) -> ClientCertificate | None:
    certificate = where.content(user, "client-certificate", BUNDLE_BYTES)
    key = where.content(user, "client-key", BUNDLE_BYTES)
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "client-certificate" if certificate is None else "client-key"
        raise KubeconfigError(user.field(missing), "not set, and its twin is")
    return ClientCertificate(certificate[0], key[0])


def _base64(text: str, field: str) -> tuple[bytes, str]:
    try:
        return base64.b64decode("".join(text.split()), validate=True), field
    except (binascii.Error, ValueError):
        raise KubeconfigError(field, "not base64") from None


def _read(path: Path, field: str, cap: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(cap + 1)
    except OSError as error:
        raise KubeconfigError(field, f"{path}: {error.strerror}") from error
    if len(content) > cap:
        raise KubeconfigError(field, f"{path}: larger than {cap} bytes")
    return content
