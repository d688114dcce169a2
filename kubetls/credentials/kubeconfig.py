"""Who am I outside a pod: kubeconfig files, as kubectl reads them.

Finds the files and takes one context out of them: the server, the namespace, and a
source that reads the credentials of its cluster and user, now and again later.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kubetls.credentials.config import Config
from kubetls.credentials.endpoint import Endpoint, endpoint_from_url, is_namespace
from kubetls.credentials.hidden import leaves_no_frame
from kubetls.credentials.kubeconfig_files import home_file, listed_files
from kubetls.credentials.kubeconfig_source import (
    KubeconfigSource,
    checked_cluster,
    lookup,
    read_documents,
)
from kubetls.errors import (
    ConfigError,
    InvalidReference,
    KubeconfigError,
)
from kubetls.identity.names import escaped, reference_identifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubetls.credentials.document import Entry
    from kubetls.credentials.exec_plugin import ExecPolicy


def kubeconfig(
    path: str | os.PathLike[str] | None = None,
    context: str | None = None,
    *,
    trust: Literal["system"] | None = None,
    exec: ExecPolicy = "allow",  # noqa: A002 - the field's own name in a kubeconfig
    files: Literal["allow", "inline-only"] = "allow",
) -> Config:
    """Read one context of a kubeconfig.

    Args:
        path: The file; None for the list in $KUBECONFIG, else ~/.kube/config.
        context: Name of a context; None for current-context.
        trust: "system" to trust the operating system's store when the cluster names
            no CA, and only then.
        exec: Whether credential plugins, programs named by the kubeconfig, may run:
            "allow", "refuse", or a callable that is asked before each run with the
            program's path, its arguments (a tuple) and the variables it adds to the
            environment (a dict), all three, as LD_PRELOAD makes another program of
            any; True allows. None runs before the first reading of credentials.
        files: "inline-only" refuses entries that name other files, for kubeconfigs
            from elsewhere: one with its own CA and a tokenFile of this machine would
            send that token to a stranger. A plugin is such a file, unless `exec` is a
            callable.

    Returns:
        A config whose source reads the files again whenever asked.

    Raises:
        KubeconfigError: An entry is missing, malformed or not supported; names it.
        InsecureConfigRefused: insecure-skip-tls-verify is true.
        CredentialError: A certificate, key or token breaks its grammar, or a file
            that holds it cannot be read.
    """
    if trust not in (None, "system"):
        raise ConfigError("trust", 'must be None or "system"')
    if files not in ("allow", "inline-only"):
        raise ConfigError("files", 'must be "allow" or "inline-only"')
    if exec not in ("allow", "refuse") and not callable(exec):
        raise ConfigError("exec", 'must be "allow", "refuse" or a callable')
    if path is not None:
        named: tuple[str, ...] = (os.path.expanduser(path),)  # noqa: PTH111 - never raises
    else:
        named = listed_files(os.environ) or home_file(os.environ)
    if not named:
        raise KubeconfigError("$HOME", "not set, nor is $KUBECONFIG; pass a path")
    return config_from_files(
        named, context, trust=trust, inline_only=files != "allow", policy=exec
    )


def config_from_files(
    files: Sequence[str],
    context: str | None = None,
    *,
    trust: Literal["system"] | None = None,
    inline_only: bool = False,
    policy: ExecPolicy = "allow",
) -> Config:
    """Read one context of several files; the first that has an entry wins.

    Raises:
        ConfigError, CredentialError: As `kubeconfig` has them.
    """
    chosen = chosen_context(files, context, trust, policy, inline_only=inline_only)
    chosen.source.check(chosen.documents)  # fails now, not at the first request
    return chosen.config


@dataclass(frozen=True, slots=True)
class ChosenContext:
    """One context of several files, its credentials not looked at yet.

    Attributes:
        config: What a session needs to know.
        source: Its source, as what it is.
        documents: The files as they were read.
    """

    config: Config
    source: KubeconfigSource
    documents: Sequence[Entry] = field(repr=False)


def chosen_context(
    files: Sequence[str],
    context: str | None = None,
    trust: Literal["system"] | None = None,
    policy: ExecPolicy = "allow",
    *,
    inline_only: bool = False,
) -> ChosenContext:
    """Read one context and its server, and no credential.

    Raises:
        ConfigError: An entry is missing, malformed or refused.
    """
    paths = tuple(str(Path(file).absolute()) for file in files)
    documents = read_documents(paths)
    name = context or _current_context(documents)
    chosen = lookup(documents, "contexts", name, "context")
    namespace = chosen.text("namespace") or "default"
    if not is_namespace(namespace):
        raise KubeconfigError(chosen.place("namespace"), "must be an RFC 1123 label")
    cluster_name = chosen.text("cluster")
    if cluster_name is None:
        raise KubeconfigError(chosen.place("cluster"), "not set")
    source = KubeconfigSource(
        paths, cluster_name, chosen.text("user"), trust, inline_only, policy
    )
    endpoint = _endpoint(checked_cluster(documents, cluster_name))
    origin = f"kubeconfig {chosen.file} context {escaped(name)}"
    config = Config(endpoint, source, namespace, origin)
    return ChosenContext(config, source, documents)


def _current_context(documents: Sequence[Entry]) -> str:
    for document in documents:
        name = document.text("current-context")
        if name is not None:
            return name
    place = documents[0].place("current-context")
    raise KubeconfigError(
        place, "not set; name a context, or kubectl config use-context"
    )


@leaves_no_frame  # a URL's user part is a password
def _endpoint(cluster: Entry) -> Endpoint:
    server = cluster.text("server")
    if server is None:
        raise KubeconfigError(cluster.place("server"), "not set")
    text = cluster.text("tls-server-name")
    try:
        server_name = None if text is None else reference_identifier(text)
    except InvalidReference as error:
        raise KubeconfigError(cluster.place("tls-server-name"), str(error)) from error
    return endpoint_from_url(server, cluster.place("server"), server_name)
