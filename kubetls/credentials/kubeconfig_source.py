"""The credentials of one cluster and one user, as kubeconfig files have them.

What would weaken the check of the server is refused by name with a remedy; what is not
supported yet is refused as well, because to leave it out would send requests as
somebody else. Unknown fields are passed over, as kubectl does.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from kubetls.credentials.anchors import (
    BUNDLE_BYTES,
    SYSTEM_ANCHORS,
    TrustAnchors,
    parse_anchors,
)
from kubetls.credentials.client_certificate import parse_client_certificate
from kubetls.credentials.config import ClientCertificate, Generation
from kubetls.credentials.document import (
    DOCUMENT_BYTES,
    Entry,
    is_blank,
    parse_document,
)
from kubetls.credentials.exec_entry import ExecEntry, cluster_info, parse_exec_entry
from kubetls.credentials.exec_plugin import PLUGINS, ExecPlugins, ExecPolicy
from kubetls.credentials.files import read_file
from kubetls.credentials.hidden import HiddenBytes, leaves_no_frame
from kubetls.credentials.token import TOKEN_BYTES, BoundToken, parse_opaque_token
from kubetls.errors import (
    CredentialError,
    CredentialMissing,
    InsecureConfigRefused,
    KubeconfigError,
)
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    from collections.abc import Sequence

Credentials = tuple[BoundToken | None, ClientCertificate | None]

_SHOWN_NAMES: Final = 8

_BASIC: Final = "basic authentication was removed from Kubernetes in 1.19; use a token"
_AS: Final = "impersonation is not supported, and leaving it out would act as yourself"
_REFUSED_USER_FIELDS: Final = {
    "auth-provider": "removed from Kubernetes in 1.26; use an exec plugin or a token",
    "username": _BASIC,
    "password": _BASIC,
    "as": _AS,
    "as-uid": _AS,
    "as-groups": _AS,
    "as-user-extra": _AS,
}


@dataclass(frozen=True, slots=True)
class KubeconfigSource:
    """One cluster and user of one or several kubeconfig files.

    Attributes:
        files: The files, absolute; the first that has an entry wins.
        cluster: Name of the cluster entry.
        user: Name of the user entry, None for none.
        trust: "system" when the operating system's store was asked for.
        inline_only: Refuse entries that name other files; a plugin is one, unless a
            callable decides on it.
        exec: Whether credential plugins may run.
        plugins: Runs them.
    """

    files: tuple[str, ...]
    cluster: str
    user: str | None = None
    trust: Literal["system"] | None = None
    inline_only: bool = False
    exec: ExecPolicy = "allow"
    plugins: ExecPlugins = field(default=PLUGINS, repr=False, compare=False)

    def read(self, *, fresh: bool = False) -> Generation:
        """Read the files again, and whatever they name.

        Args:
            fresh: The server refused what was read before: a plugin is run again.

        Raises:
            ConfigError: A kubeconfig is gone or was changed for the worse.
            CredentialError: A file it names, or a credential in it, cannot be used,
                or its plugin failed.
        """
        documents = read_documents(self.files)
        anchors = self.anchors(documents)
        return Generation(anchors, *self.credentials(documents, anchors, fresh=fresh))

    def check(self, documents: Sequence[Entry]) -> None:
        """Judge files that were just read, as `read` does, but run no plugin."""
        self.anchors(documents)
        self.static(documents)

    def anchors(self, documents: Sequence[Entry]) -> TrustAnchors:
        """Return the trust anchors of the cluster."""
        return self._anchors(checked_cluster(documents, self.cluster))

    def credentials(
        self, documents: Sequence[Entry], anchors: TrustAnchors, *, fresh: bool = False
    ) -> Credentials:
        """Return the user's token and certificate, of its plugin if it has one."""
        found = self.static(documents)
        if not isinstance(found, ExecEntry):
            return found
        cluster = cluster_info(checked_cluster(documents, self.cluster), anchors)
        made = self.plugins.credential(found, cluster, self.exec, fresh=fresh)
        return made.token, made.client_certificate

    def static(self, documents: Sequence[Entry]) -> ExecEntry | Credentials:
        """Return the user's token and certificate, or the plugin that has them.

        As for kubectl, a plugin is not asked when there is a token or a certificate.
        """
        if self.user is None:
            return None, None
        user = lookup(documents, "users", self.user, "user")
        for name, reason in _REFUSED_USER_FIELDS.items():
            if user.has(name):
                raise KubeconfigError(user.place(name), reason)
        entry = parse_exec_entry(user, os.path.dirname(user.file))  # noqa: PTH120 - text
        found = self._token(user), self._client_certificate(user)
        if entry is None or found != (None, None):
            return found
        if self.exec == "refuse":
            reason = 'names a credential plugin, and exec="refuse"'
            raise KubeconfigError(user.place("exec"), reason)
        if self.inline_only and self.exec == "allow":
            reason = 'names a program, and files="inline-only"; pass exec= a callable'
            raise KubeconfigError(user.place("exec"), reason)
        return entry

    def _anchors(self, cluster: Entry) -> TrustAnchors:
        name = "certificate-authority"
        found = self._content(cluster, name)
        if found is not None:
            return parse_anchors(found[0].content, found[1])
        if self.trust == "system":
            return SYSTEM_ANCHORS
        reason = (
            "names no CA; add certificate-authority-data, or, for a server with a "
            'publicly trusted certificate, pass trust="system"'
        )
        raise KubeconfigError(cluster.place(name), reason)

    def _token(self, user: Entry) -> BoundToken | None:
        # client-go: what tokenFile holds takes precedence over token.
        named = user.text("tokenFile")
        if named is not None:
            content, source = self._file(user, "tokenFile", named, TOKEN_BYTES)
            return parse_opaque_token(content.content, source)
        inline = user.hidden("token")
        if inline is None:
            return None
        return parse_opaque_token(inline.content, user.place("token"))

    def _client_certificate(self, user: Entry) -> ClientCertificate | None:
        certificate = self._content(user, "client-certificate")
        key = self._content(user, "client-key")
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            missing = "client-certificate" if certificate is None else "client-key"
            raise KubeconfigError(user.place(missing), "not set, and its twin is")
        return parse_client_certificate(*certificate, *key)

    def _content(self, entry: Entry, name: str) -> tuple[HiddenBytes, str] | None:
        """Return content and source of NAME-data or NAME; None when both are absent."""
        inline, named = entry.hidden(f"{name}-data"), entry.text(name)
        if inline is not None and named is not None:
            reason = f"{name} and {name}-data are both set, keep one"
            raise KubeconfigError(entry.place(name), reason)
        if inline is not None:
            place = entry.place(f"{name}-data")
            return _base64(inline, place), place
        if named is None:
            return None
        return self._file(entry, name, named, BUNDLE_BYTES)

    def _file(
        self, entry: Entry, name: str, named: str, cap_bytes: int
    ) -> tuple[HiddenBytes, str]:
        """Read a file that an entry names, relative to the kubeconfig's folder."""
        place = entry.place(name)
        if self.inline_only:
            raise KubeconfigError(place, 'names a file, and files="inline-only"')
        path = os.path.join(os.path.dirname(entry.file), named)  # noqa: PTH118, PTH120 - text, not a Path
        source = f"{escaped(path, 400)} (from {place})"
        content = read_file(path, source, cap_bytes)
        if content is None:
            raise CredentialMissing(source, "does not exist")
        return content, source


def read_documents(files: Sequence[str]) -> list[Entry]:
    """Read the files that exist; at least one has to.

    Of several, an empty one is as if it were absent: kubectl passes it over as well.
    """
    documents = []
    for file in files:
        try:
            content = read_file(file, file, DOCUMENT_BYTES)
        except CredentialError as error:
            raise KubeconfigError(error.path, error.reason) from error
        if content is not None and (len(files) == 1 or not is_blank(content)):
            documents.append(parse_document(content, file))
    if not documents:
        reason = "does not exist" if len(files) == 1 else "do not exist, or are empty"
        raise KubeconfigError(", ".join(files), reason)
    return documents


def lookup(documents: Sequence[Entry], listing: str, name: str, body: str) -> Entry:
    """Return what a named entry of contexts, clusters or users holds."""
    known: list[str] = []
    for document in documents:
        entries = document.listed(listing)
        if name in entries:
            return entries[name].body(body, f"{listing}[{escaped(name)}]")
        known += [escaped(other) for other in entries]
    shown = ", ".join(known[:_SHOWN_NAMES]) or "none"
    more = ", ..." if len(known) > _SHOWN_NAMES else ""
    reason = f"has no entry named {escaped(name)!r} (there: {shown}{more})"
    raise KubeconfigError(documents[0].place(listing), reason)


def checked_cluster(documents: Sequence[Entry], name: str) -> Entry:
    """Return a cluster entry that does not ask for a weaker check."""
    cluster = lookup(documents, "clusters", name, "cluster")
    field = "insecure-skip-tls-verify"
    if cluster.flag(field):
        reason = (
            "refused, whoever answers would get your credentials; name the CA in "
            "certificate-authority-data, and tls-server-name if the name differs"
        )
        raise InsecureConfigRefused(cluster.place(field), reason)
    if cluster.has("proxy-url"):
        reason = "proxies are not supported; reach the server without one"
        raise KubeconfigError(cluster.place("proxy-url"), reason)
    return cluster


@leaves_no_frame
def _base64(text: HiddenBytes, place: str) -> HiddenBytes:
    try:
        return HiddenBytes(
            base64.b64decode(b"".join(text.content.split()), validate=True)
        )
    except binascii.Error:
        raise KubeconfigError(place, "not base64") from None
