"""Who am I in a pod: the environment and the service-account volume.

KUBERNETES_SERVICE_HOST set means in a cluster. What is then missing or malformed is an
error that names it; there is no fallback to a kubeconfig, to the system's trust store,
to a DNS name, or to requests without credentials.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubetls.credentials.anchors import parse_anchors
from kubetls.credentials.config import Config, Generation
from kubetls.credentials.endpoint import endpoint_from_environment, is_namespace
from kubetls.credentials.token import parse_mounted_token
from kubetls.credentials.volume import DEFAULT_VOLUME, VolumeContent, read_volume
from kubetls.errors import CredentialEmpty, CredentialMalformed, CredentialMissing
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubetls.credentials.anchors import TrustAnchors
    from kubetls.credentials.token import BoundToken


@dataclass(frozen=True, slots=True)
class InClusterSource:
    """The service-account volume of this pod.

    Attributes:
        volume: Directory of the mount.
    """

    volume: str

    def read(self, *, fresh: bool = False) -> Generation:  # noqa: ARG002 - always is
        """Read one consistent generation of token and trust anchors."""
        return _generation(read_volume(self.volume), self.volume)


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
    _generation(content, source.volume)  # fails now, not at the first request
    namespace = mounted_namespace(content, source.volume)
    return Config(endpoint, source, namespace, "in-cluster")


def _generation(content: VolumeContent, volume: str) -> Generation:
    token = mounted_token(content, volume)
    return Generation(mounted_anchors(content, volume), token)


def mounted_token(content: VolumeContent, volume: str) -> BoundToken:
    """Return the token of a volume.

    Raises:
        CredentialError: It is missing, empty or malformed.
    """
    path = f"{volume}/token"
    if content.token is None:
        reason = (
            "no token; automountServiceAccountToken is false for this pod or its "
            "service account (set it to true), or the volume was replaced"
        )
        raise CredentialMissing(path, reason)
    return parse_mounted_token(content.token.content, path)


def mounted_anchors(content: VolumeContent, volume: str) -> TrustAnchors:
    """Return the trust anchors of a volume.

    Raises:
        CredentialError: They are missing, empty or malformed.
    """
    path = f"{volume}/ca.crt"
    if content.ca is None:
        reason = "no CA bundle; the server cannot be verified without it"
        raise CredentialMissing(path, reason)
    return parse_anchors(content.ca.content, path, authorities_only=True)


def mounted_namespace(content: VolumeContent, volume: str) -> str:
    """Return the namespace of a volume.

    Custom projected volumes often leave it out; requests that name their namespace
    work all the same, so "default" as everywhere else in Kubernetes.

    Raises:
        CredentialError: It is empty or no namespace.
    """
    path = f"{volume}/namespace"
    if content.namespace is None:
        return "default"
    text = content.namespace.content.decode("latin-1").strip(" \t\r\n")
    if not text:
        raise CredentialEmpty(path, "holds no namespace")
    if not is_namespace(text):
        reason = f"{escaped(text)!r} is no namespace (RFC 1123 label)"
        raise CredentialMalformed(path, reason)
    return text
