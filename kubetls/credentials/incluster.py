"""Who am I in a pod: the environment and the service-account volume.

KUBERNETES_SERVICE_HOST set means in a cluster. What is then missing or malformed is an
error that names it; there is no fallback to a kubeconfig, to the system's trust store,
to a DNS name, or to requests without credentials.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kubetls.credentials.anchors import parse_anchors
from kubetls.credentials.config import Config, Generation
from kubetls.credentials.endpoint import endpoint_from_environment
from kubetls.credentials.token import parse_mounted_token
from kubetls.credentials.volume import DEFAULT_VOLUME, VolumeContent, read_volume
from kubetls.errors import CredentialMalformed, CredentialMissing
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping

# A namespace's name is an RFC 1123 label.
_NAMESPACE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class InClusterSource:
    """The service-account volume of this pod.

    Attributes:
        volume: Directory of the mount.
    """

    volume: str

    def read(self) -> Generation:
        """Read one consistent generation of token and trust anchors."""
        return self.parse(read_volume(self.volume))

    def parse(self, content: VolumeContent) -> Generation:
        """Parse what was read; errors name the file."""
        token_path, ca_path = f"{self.volume}/token", f"{self.volume}/ca.crt"
        if content.token is None:
            reason = (
                "no token; automountServiceAccountToken is false for this pod or its "
                "service account, or the volume was replaced"
            )
            raise CredentialMissing(token_path, reason)
        if content.ca is None:
            reason = "no CA bundle; the server cannot be verified without it"
            raise CredentialMissing(ca_path, reason)
        return Generation(
            anchors=parse_anchors(content.ca, ca_path, require_ca=True),
            token=parse_mounted_token(content.token, token_path),
        )


def in_cluster(
    volume: str | os.PathLike[str] = DEFAULT_VOLUME,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Read this pod's configuration; everything read is an argument.

    Args:
        volume: Where the service-account volume is mounted.
        environ: Where KUBERNETES_SERVICE_HOST and _PORT are looked up.

    Returns:
        A config whose source reads the volume again whenever asked.

    Raises:
        NotInCluster: KUBERNETES_SERVICE_HOST is not set.
        ConfigError: A variable is malformed.
        CredentialError: A file is missing, empty or malformed.
    """
    endpoint = endpoint_from_environment(environ)
    source = InClusterSource(os.fspath(volume))
    content = read_volume(source.volume)
    source.parse(content)  # fails now rather than at the first request
    namespace = _namespace(content.namespace, f"{source.volume}/namespace")
    return Config(endpoint, source, namespace, "in-cluster")


def _namespace(content: bytes | None, path: str) -> str:
    # Custom projected volumes often leave it out; requests that name their namespace
    # work all the same, so "default" as everywhere else in Kubernetes.
    if content is None:
        return "default"
    text = content.decode("latin-1").strip()
    if not _NAMESPACE.match(text):
        reason = f"{escaped(text)!r} is no namespace (RFC 1123 label)"
        raise CredentialMalformed(path, reason)
    return text
