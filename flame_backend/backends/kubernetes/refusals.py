"""What a runner's manifest may not say, each with its field's path and the remedy.

Refused is what takes a runner out of the pool's hands, or lets another object take it;
everything else is the user's and the API server's to judge.
"""

from __future__ import annotations

from typing import Any, Final

from flame_backend.backends.kubernetes.merging import DIRECTIVE
from flame_backend.backends.kubernetes.pod_template import (
    IDENTITY_LABELS,
    RESERVED_ENV,
    RUNNER_CONTAINER,
)
from flame_backend.backends.kubernetes.shapes import LOOKED_INTO, check_shape
from flame_backend.errors import ManifestError

LABEL: Final = "flame-backend"
INSTANCE: Final = f"{LABEL}/instance"
"""Label with the identity of the pool object."""
PROCESS: Final = f"{LABEL}/process"
"""Label of all runners that one process watches together."""
BOOT_TIMEOUT: Final = f"{LABEL}/boot-timeout"
"""Annotation: seconds after which one that is still Pending is given up."""
KEEP_FAILED: Final = f"{LABEL}/keep-failed"
"""Annotation: seconds for which it is kept for a look when it has failed."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"

TOKEN_FOLDER: Final = "/var/run/secrets/flame"  # noqa: S105 - a path
TOKEN_VOLUME: Final = "flame-token"  # noqa: S105 - a volume's name

_OWN_PROCESSES: Final = "a runner's processes are its own"
_NAMES: Final = "the pool names its runners"

FORBIDDEN: Final = {
    "metadata.name": _NAMES,
    "metadata.generateName": _NAMES,
    "metadata.namespace": "runners live in their parent's namespace",
    "metadata.ownerReferences": "a runner belongs to its parent's pod",
    "metadata.finalizers": "a runner must go when its pool deletes it",
    "spec.nodeName": "it goes around the scheduler; use nodeSelector",
    "spec.priority": "the cluster computes it; use priorityClassName",
    "spec.restartPolicy": "a runner is never restarted, the pool boots another",
    "spec.terminationGracePeriodSeconds": "set shutdown_timeout on the pool",
    "spec.ephemeralContainers": "cannot be created with a pod",
    "spec.hostNetwork": "a runner needs an address of its own",
    "spec.hostPID": _OWN_PROCESSES,
    "spec.hostIPC": _OWN_PROCESSES,
    "spec.shareProcessNamespace": _OWN_PROCESSES,
    "spec.automountServiceAccountToken": "runners have no API token",
    "spec.serviceAccount": "is deprecated; use serviceAccountName",
    "status": "is the cluster's to write",
}
"""Fields of the pod, and why. false is no wish, and allowed."""

_STARTS: Final = "the runner's process is the pool's to start"
FORBIDDEN_CONTAINER: Final = {
    "command": _STARTS,
    "args": _STARTS,
    "lifecycle": _STARTS,
    "stdin": _STARTS,
    "tty": _STARTS,
    "restartPolicy": "a runner is never restarted, the pool boots another",
    "restartPolicyRules": "a runner is never restarted, the pool boots another",
    # What a program wrote there can be read with `get pods`.
    "terminationMessagePolicy": "is the runner's own",
    "terminationMessagePath": "is the runner's own",
    DIRECTIVE: "a runner needs its container",
}
"""Fields of the runner's container."""

_SIDECAR: Final = (
    "a second container would keep the pod alive after its runner; put a sidecar into "
    "spec.initContainers with restartPolicy: Always, or name the parent's in sidecars="
)

# A ReplicaSet, StatefulSet, DaemonSet or Job adopts or counts pods by these.
_ADOPTION_LABELS: Final = (
    "pod-template-hash", "pod-template-generation", "controller-revision-hash",
    "statefulset.kubernetes.io/", "apps.kubernetes.io/pod-index", "job-name",
    "controller-uid", "batch.kubernetes.io/",
)  # fmt: skip

# By these, Services and Deployments select, as templates and charts write them.
_SELECTOR_LABELS: Final = (
    "app", "k8s-app", "run", "name", "component", "app.kubernetes.io/name",
    "app.kubernetes.io/instance", "app.kubernetes.io/component",
)  # fmt: skip


def refuse_forbidden(user: dict[str, Any], parent: dict[str, Any]) -> None:
    """Check a user's manifest, as `merging.plain` made it.

    Raises:
        ManifestError: Names the first field that is refused, and why.
    """
    if user.get("kind", "Pod") != "Pod" or user.get("apiVersion", "v1") != "v1":
        raise ManifestError("manifest.kind", "a runner is a v1 Pod")
    metadata, spec = (_mapping(user, name, "manifest") for name in ("metadata", "spec"))
    for path, reason in FORBIDDEN.items():
        section, _, field = path.rpartition(".")
        holder = {"metadata": metadata, "spec": spec, "": user}[section]
        if holder.get(field) is not None and holder[field] is not False:
            raise ManifestError(f"manifest.{path}", reason)
    _refuse_labels(_texts(metadata, "labels", "manifest.metadata"), parent)
    for name in _texts(metadata, "annotations", "manifest.metadata"):
        _refuse_ours(name, f"manifest.metadata.annotations[{name}]")
    _refuse_runner(user, spec)
    for number, item in enumerate(_items(spec, "initContainers", "manifest.spec")):
        _refuse_beside(item, f"manifest.spec.initContainers[{number}]")
    for number, volume in enumerate(_items(spec, "volumes", "manifest.spec")):
        if volume.get("name") == TOKEN_VOLUME:
            where = f"manifest.spec.volumes[{number}].name"
            raise ManifestError(where, f"{TOKEN_VOLUME} is the runner's own")


def _refuse_runner(user: dict[str, Any], spec: dict[str, Any]) -> None:
    if "spec" in user and user["spec"] is None:
        raise ManifestError("manifest.spec", "a runner needs its container")
    if "containers" in spec and spec["containers"] is None:
        raise ManifestError("manifest.spec.containers", "a runner needs its container")
    check_shape(spec, LOOKED_INTO, "manifest.spec")
    containers = _items(spec, "containers", "manifest.spec")
    if len(containers) > 1:
        raise ManifestError("manifest.spec.containers[1]", _SIDECAR)
    for item in containers:
        where = "manifest.spec.containers[0]"
        for field, reason in FORBIDDEN_CONTAINER.items():
            if item.get(field) is not None:
                raise ManifestError(f"{where}.{field}", reason)
        if "image" in item and not item["image"]:
            raise ManifestError(f"{where}.image", "a runner needs an image")
        for entry in _items(item, "env", where):
            refuse_variable(entry.get("name"), f"{where}.env")
            if not isinstance(entry.get("value"), str | None):
                place = f"{where}.env[{entry['name']}].value"
                raise ManifestError(place, "must be text; quote it in YAML")
        check_shape(item, LOOKED_INTO, where)
        _refuse_token_mounts(item, where)


def _refuse_beside(item: dict[str, Any], where: str) -> None:
    if item.get("name") == RUNNER_CONTAINER:
        raise ManifestError(f"{where}.name", f"{RUNNER_CONTAINER} is the runner's own")
    check_shape(item, LOOKED_INTO, where)
    _refuse_token_mounts(item, where)


def _refuse_token_mounts(item: dict[str, Any], where: str) -> None:
    for number, mount in enumerate(_items(item, "volumeMounts", where)):
        folder = str(mount.get("mountPath") or "").rstrip("/")
        inside = f"{folder}/".startswith(f"{TOKEN_FOLDER}/")
        if inside or mount.get("name") == TOKEN_VOLUME:
            reason = f"{TOKEN_FOLDER} holds the runner's own token"
            raise ManifestError(f"{where}.volumeMounts[{number}]", reason)


def refuse_variable(name: object, where: str) -> None:
    """Check the name of a variable of the runner's container.

    Raises:
        ManifestError: It is none, or it is the runner's own.
    """
    if not isinstance(name, str) or not name or "=" in name or not name.isprintable():
        raise ManifestError(where, f"{name!r} is no name of a variable")
    if RESERVED_ENV.match(name):
        raise ManifestError(f"{where}[{name}]", "is reserved for the runner itself")


def _refuse_labels(labels: dict[str, str | None], parent: dict[str, Any]) -> None:
    """Refuse what would make a runner part of the app's own workload or Service."""
    theirs = {
        name: value
        for name, value in (parent["metadata"].get("labels") or {}).items()
        if not name.startswith(_ADOPTION_LABELS) and name not in IDENTITY_LABELS
    }
    for name, value in labels.items():
        where = f"manifest.metadata.labels[{name}]"
        _refuse_ours(name, where)
        if name == MANAGED_BY and value not in {None, LABEL}:
            raise ManifestError(where, f"is always {LABEL}")
        if name.startswith(_ADOPTION_LABELS) and value is not None:
            raise ManifestError(where, "is reserved: a controller would adopt runners")
        if name in _SELECTOR_LABELS and theirs.get(name) == value is not None:
            reason = f"{value!r} is the app's own: its Service would send runners work"
            raise ManifestError(where, reason)
    if theirs and theirs.items() <= labels.items():
        reason = "all labels of the app: its Service or ReplicaSet would take runners"
        raise ManifestError("manifest.metadata.labels", reason)


def _refuse_ours(name: str, where: str) -> None:
    if name.startswith(f"{LABEL}/"):
        raise ManifestError(where, "is reserved: the pool finds its runners by it")


def _mapping(holder: dict[str, Any], field: str, where: str) -> dict[str, Any]:
    found = holder.get(field)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ManifestError(f"{where}.{field}", "must be a mapping")
    return found


def _texts(holder: dict[str, Any], field: str, where: str) -> dict[str, str | None]:
    found = _mapping(holder, field, where)
    for name, value in found.items():
        if not isinstance(value, str | None):
            place = f"{where}.{field}[{name}]"
            raise ManifestError(place, "must be text; quote it in YAML")
    return found


def _items(holder: dict[str, Any], field: str, where: str) -> list[dict[str, Any]]:
    found = holder.get(field)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ManifestError(f"{where}.{field}", "must be a list")
    for number, item in enumerate(found):
        if not isinstance(item, dict):
            raise ManifestError(f"{where}.{field}[{number}]", "must be a mapping")
    return found
