"""Which cluster: the one order in which configurations are looked for.

$KUBECONFIG if set, else in-cluster when KUBERNETES_SERVICE_HOST is set, else
~/.kube/config. A place that applies and is broken raises; nothing is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kubetls.credentials.endpoint import HOST_VARIABLE
from kubetls.credentials.incluster import in_cluster
from kubetls.credentials.kubeconfig import kubeconfig
from kubetls.errors import KubeconfigError, NotInCluster

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubetls.credentials.config import Config


def choose(environ: Mapping[str, str]) -> Config:
    """Return the configuration that applies to this process.

    Raises:
        NotInCluster: None applies; names every place that was looked at.
        ConfigError, CredentialError: The one that applies is malformed.
    """
    listed = environ.get("KUBECONFIG")
    if listed:
        paths = [path for path in listed.split(":") if path]
        if len(paths) != 1:
            reason = f"names {len(paths)} files; merging is not supported yet, name one"
            raise KubeconfigError("$KUBECONFIG", reason)
        return kubeconfig(paths[0])
    if HOST_VARIABLE in environ:
        return in_cluster(environ=environ)
    home = Path.home() / ".kube" / "config"
    if home.exists():
        return kubeconfig(home)
    reason = f"not set, nor is $KUBECONFIG, and {home} does not exist; name a config"
    raise NotInCluster(HOST_VARIABLE, reason)
