"""Which cluster: the one order in which configurations are looked for.

$KUBECONFIG if set, else in-cluster when KUBERNETES_SERVICE_HOST is set, else
~/.kube/config. A place that applies and is broken raises; nothing is skipped.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kubetls.credentials.endpoint import HOST_VARIABLE
from kubetls.credentials.kubeconfig_files import home_file, listed_files
from kubetls.errors import NotInCluster

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubetls.credentials.config import Config


def choose(environ: Mapping[str, str]) -> Config:
    """Return the configuration that applies to this process.

    Raises:
        NotInCluster: None applies; names every place that was looked at.
        ConfigError, CredentialError: The one that applies is malformed.
    """
    files = chosen_files(environ)
    # A program needs one of the two, and pays for that one.
    if files:
        from kubetls.credentials.kubeconfig import config_from_files

        return config_from_files(files)
    from kubetls.credentials.incluster import in_cluster

    return in_cluster(environ=environ)


def chosen_files(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the kubeconfig files that apply, () for the pod's own credentials.

    Raises:
        NotInCluster: Nothing applies; names every place that was looked at.
        KubeconfigError: $KUBECONFIG names no file.
    """
    files = listed_files(environ)
    if files or HOST_VARIABLE in environ:
        return files
    home = home_file(environ)
    if any(map(os.path.lexists, home)):
        return home
    looked = f"{home[0]} does not exist" if home else "$HOME is not set"
    where = f"not set, nor is $KUBECONFIG, and {looked}"
    remedy = "no cluster is configured; name a kubeconfig in $KUBECONFIG"
    raise NotInCluster(HOST_VARIABLE, f"{where}: {remedy}")
