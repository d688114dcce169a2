"""Sessions of the commands, and the parent's pod: from the cluster or from a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import kubetls
from flame_backend.backends.kubernetes.own_pod import own_pod
from flame_backend.backends.kubernetes.shapes import PARENT, check_shape
from flame_backend.backends.kubernetes.yaml_text import parsed
from flame_backend.errors import ConfigurationError
from flame_backend.version import VERSION

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

# What stands in for facts that a file does not have.
UNKNOWN_NAME: Final = "parent"
UNKNOWN_UID: Final = "00000000-0000-0000-0000-000000000000"


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which cluster and namespace."""
    group = parser.add_argument_group("cluster")
    group.add_argument("-n", "--namespace", help="namespace (default: the context's)")
    group.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="default: $KUBECONFIG, else in-cluster, else ~/.kube/config",
    )
    group.add_argument("--context", metavar="NAME", help="context of the kubeconfig")


def open_session(args: argparse.Namespace) -> kubetls.Session:
    """Open a session as the options say.

    Raises:
        KubeTLSError: There is no usable configuration.
    """
    config = None
    if args.kubeconfig or args.context:
        config = kubetls.kubeconfig(args.kubeconfig, args.context)
    agent = f"flame-backend-cli/{VERSION}"
    return kubetls.session(config, namespace=args.namespace, user_agent=agent)


def parent_from_cluster(session: kubetls.Session, name: str | None) -> dict[str, Any]:
    """Get the parent's pod: the one named, else the one this process runs in.

    Raises:
        ConfigurationError: None is named, and this is no pod.
        KubeTLSError: It cannot be had.
    """
    if name is None:
        if not in_pod():
            reason = "this is no pod: name the app's, or give a file with --parent"
            raise ConfigurationError("--pod", reason)
        return own_pod(session)
    return session.get(kubetls.path("v1", "pods", name, namespace=session.namespace))


def in_pod() -> bool:
    """Say whether this process runs in a pod."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def parent_from_file(name: str, namespace: str | None) -> dict[str, Any]:
    """Read the parent's pod from YAML or JSON; "-" is standard input.

    A Deployment, StatefulSet, DaemonSet, Job or CronJob will do: its template is the
    pod. Of several documents the first with a pod is taken.

    Raises:
        ConfigurationError: The file cannot be read, or there is no pod in it.
    """
    for document in _documents(name):
        template = _template(document)
        if template is None:
            continue
        metadata = {"name": UNKNOWN_NAME, "uid": UNKNOWN_UID}
        for holder in (document, template):
            check_shape(holder.get("metadata"), {}, f"{name}.metadata")
            metadata |= _mapping(holder, "metadata")
        metadata["namespace"] = namespace or metadata.get("namespace") or "default"
        pod = {**template, "apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        check_shape(pod, PARENT, name)
        return pod
    raise ConfigurationError(name, "there is no pod in it, nor a workload of pods")


def _documents(name: str) -> Iterator[dict[str, Any]]:
    for document in parsed(read_text(name), name):
        if isinstance(document, dict) and document.get("kind") == "List":
            items = document.get("items")
            found = items if isinstance(items, list) else []
            yield from (item for item in found if isinstance(item, dict))
        elif isinstance(document, dict):
            yield document


def read_text(name: str) -> str:
    """Read a file; "-" is standard input.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(name, f"cannot be read: {error}") from error


def _template(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the pod that a document describes; None when it describes none."""
    kind, spec = document.get("kind"), _mapping(document, "spec")
    if kind == "CronJob":
        spec = _mapping(_mapping(spec, "jobTemplate"), "spec")
    found = document if kind == "Pod" else spec.get("template")
    if isinstance(found, dict) and _mapping(found, "spec").get("containers"):
        return found
    return None


def _mapping(holder: dict[str, Any], field: str) -> dict[str, Any]:
    found = holder.get(field)
    return found if isinstance(found, dict) else {}
