"""The runner's pod: inherited, changed by the user, and our fields last.

Pure: dicts in, a new dict out; nothing that was passed in is changed. The user's part
is a dict, YAML text or a callback; None in it deletes an inherited field, containers,
environment and volumes are merged by name. Fields that would take a runner out of our
hands are refused with their path.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.kubernetes.pod_template import (
    RESERVED_ENV,
    RUNNER_CONTAINER,
    app_container,
    inherited_pod,
)
from flame_backend.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Manifest = (
        Mapping[str, Any]
        | str
        | Callable[[dict[str, Any], dict[str, Any]], Mapping[str, Any]]
    )

TOKEN_SECONDS: Final = 600
"""The shortest life the API server grants a projected token."""

TOKEN_FOLDER: Final = "/var/run/secrets/flame"  # noqa: S105 - a path
TOKEN_PATH: Final = f"{TOKEN_FOLDER}/token"
TOKEN_VOLUME: Final = "flame-token"  # noqa: S105 - a volume's name

LABEL: Final = "flame-backend"

# Each would take the runner out of our hands, or into another object's.
_FORBIDDEN: Final = {
    ("metadata", "name"): "the pool names its runners",
    ("metadata", "generateName"): "the pool names its runners",
    ("metadata", "namespace"): "runners live in their parent's namespace",
    ("metadata", "ownerReferences"): "a runner belongs to its parent's pod",
    ("spec", "nodeName"): "it goes around the scheduler; use nodeSelector",
    ("spec", "restartPolicy"): "a runner is never restarted, the pool boots another",
    ("spec", "initContainers"): "not supported yet",
    ("spec", "ephemeralContainers"): "cannot be created with a pod",
    ("spec", "hostNetwork"): "a runner needs an address of its own",
    ("spec", "hostPID"): "a runner's processes are its own",
    ("spec", "hostIPC"): "a runner's processes are its own",
    ("spec", "automountServiceAccountToken"): "runners have no API token",
    ("status",): "is the cluster's to write",
}
_FORBIDDEN_CONTAINER: Final = ("command", "args", "lifecycle", "stdin", "tty")

# A ReplicaSet, StatefulSet or Job adopts or counts pods by these.
_ADOPTION_LABELS: Final = (
    "pod-template-hash", "controller-revision-hash", "statefulset.kubernetes.io/",
    "job-name", "controller-uid", "batch.kubernetes.io/",
)  # fmt: skip

_MERGE_KEYS: Final = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerIdentity:
    """What makes a pod this runner.

    Attributes:
        name: Name of runner and pod.
        pool: Name of the pool.
        instance: The pool object's identity.
        audience: Of its token; no other runner has it.
        parent_variable: Text of FLAME_PARENT.
        boot_timeout: Seconds after which a Pending one may be swept.
        grace: terminationGracePeriodSeconds.
    """

    name: str
    pool: str
    instance: str
    audience: str
    parent_variable: str
    boot_timeout: float
    grace: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """The user's say: see `KubernetesBackend`."""

    manifest: Manifest | None = None
    env: Mapping[str, str | None] | None = None
    resources: Mapping[str, Any] | None = None
    container: str | None = None
    service_account: str | None = None
    owner_reference: bool = True


def runner_pod(
    parent_pod: Mapping[str, Any], options: RunnerOptions, identity: RunnerIdentity
) -> dict[str, Any]:
    """Build the pod of one runner.

    Args:
        parent_pod: The parent's own pod as the API gives it.
        options: What the user wants changed.
        identity: Names, token and owner.

    Returns:
        The pod to post.

    Raises:
        ManifestError: Names the field and the rule.
    """
    parent = copy.deepcopy(dict(parent_pod))
    container = app_container(parent, options.container)
    pod = inherited_pod(parent, container)
    user = _user_manifest(options.manifest, parent, container)
    _refuse_forbidden(user)
    pod = dict(_merged(pod, _aimed(user), "manifest"))
    runner = _runner_container(pod)
    if options.resources is not None:
        runner["resources"] = copy.deepcopy(dict(options.resources))
    _add_env(runner, options.env or {})
    if options.service_account:
        pod["spec"]["serviceAccountName"] = options.service_account
    _force(pod, runner, identity)
    if options.owner_reference:
        pod["metadata"]["ownerReferences"] = [_owner(parent)]
    return pod


def _user_manifest(
    manifest: Manifest | None, parent: dict[str, Any], container: dict[str, Any]
) -> dict[str, Any]:
    if manifest is None:
        return {}
    found: Any = manifest
    if callable(manifest):
        found = _called(manifest, parent, container)
    if isinstance(found, str):
        import yaml

        try:
            found = yaml.safe_load(found)
        except yaml.YAMLError as error:
            raise ManifestError("manifest", f"not YAML: {error}") from error
    if not isinstance(found, dict):
        raise ManifestError("manifest", "must be a mapping")
    return copy.deepcopy(found)


def _called(
    callback: Callable[[dict[str, Any], dict[str, Any]], Mapping[str, Any]],
    parent: dict[str, Any],
    container: dict[str, Any],
) -> object:
    try:
        return callback(copy.deepcopy(parent), copy.deepcopy(container))
    except Exception as error:
        reason = f"the callback raised {type(error).__name__}: {error}"
        raise ManifestError("manifest", reason) from error


def _refuse_forbidden(user: dict[str, Any]) -> None:
    for path, reason in _FORBIDDEN.items():
        value: Any = user
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            raise ManifestError(f"manifest.{'.'.join(path)}", reason)
    if user.get("kind", "Pod") != "Pod" or user.get("apiVersion", "v1") != "v1":
        raise ManifestError("manifest.kind", "a runner is a v1 Pod")
    for label in (user.get("metadata") or {}).get("labels") or {}:
        if label.startswith((f"{LABEL}/", *_ADOPTION_LABELS)):
            reason = "is reserved: a controller would adopt the runner"
            raise ManifestError(f"manifest.metadata.labels[{label}]", reason)
    containers = (user.get("spec") or {}).get("containers") or []
    if len(containers) > 1:
        raise ManifestError(
            "manifest.spec.containers", "sidecars are not supported yet"
        )
    for item in containers:
        _refuse_in_container(item, "manifest.spec.containers[0]")


def _refuse_in_container(item: dict[str, Any], where: str) -> None:
    for field in _FORBIDDEN_CONTAINER:
        if item.get(field) is not None:
            reason = "the runner's process is the pool's to start"
            raise ManifestError(f"{where}.{field}", reason)
    for entry in item.get("env") or ():
        _refuse_reserved(entry.get("name"), f"{where}.env")


def _refuse_reserved(name: object, where: str) -> None:
    if not isinstance(name, str) or not name or "=" in name:
        raise ManifestError(where, f"{name!r} is no name of a variable")
    if RESERVED_ENV.match(name):
        raise ManifestError(f"{where}[{name}]", "is reserved for the runner itself")


def _aimed(user: dict[str, Any]) -> dict[str, Any]:
    """Aim the user's one container at the runner's, whatever it is called."""
    for item in (user.get("spec") or {}).get("containers") or ():
        item["name"] = RUNNER_CONTAINER
    return user


def _merged(base: Any, patch: Any, where: str) -> Any:
    """Merge as kubectl does: by key, lists by name; None deletes."""
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    result = dict(base)
    for key, value in patch.items():
        place = f"{where}.{key}"
        if value is None:
            result.pop(key, None)
        elif key in _MERGE_KEYS and isinstance(value, list):
            result[key] = _merged_list(
                result.get(key) or [], value, _MERGE_KEYS[key], place
            )
        else:
            result[key] = _merged(result.get(key), value, place)
    return result


def _merged_list(base: list[Any], patch: list[Any], key: str, where: str) -> list[Any]:
    result = {item[key]: item for item in base}
    for number, item in enumerate(patch):
        if not isinstance(item, dict) or key not in item:
            raise ManifestError(f"{where}[{number}]", f"needs a {key}")
        name = item[key]
        if key == "name" and where.endswith("env") and set(item) == {"name", "value"}:
            # A value replaces valueFrom; None deletes the variable.
            if item["value"] is None:
                result.pop(name, None)
            else:
                result[name] = item
        else:
            result[name] = _merged(result.get(name) or {}, item, f"{where}[{name}]")
    return list(result.values())


def _runner_container(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod["spec"]["containers"][0]
    return found


def _add_env(runner: dict[str, Any], env: Mapping[str, str | None]) -> None:
    for name in env:
        _refuse_reserved(name, "env")
    kept = [item for item in runner.get("env") or () if item["name"] not in env]
    for name, value in env.items():
        if value is not None:
            if not isinstance(value, str):
                raise ManifestError(f"env[{name}]", "must be text")
            kept.append({"name": name, "value": value})
    runner["env"] = kept


def _force(
    pod: dict[str, Any], runner: dict[str, Any], identity: RunnerIdentity
) -> None:
    """Set what makes it a runner; nothing of the user's comes after this."""
    pod["apiVersion"], pod["kind"] = "v1", "Pod"
    metadata, spec = pod.setdefault("metadata", {}), pod["spec"]
    metadata["name"] = identity.name
    metadata["labels"] = {
        **(metadata.get("labels") or {}),
        "app.kubernetes.io/managed-by": LABEL,
        f"{LABEL}/pool": identity.pool,
        f"{LABEL}/instance": identity.instance,
    }
    metadata["annotations"] = {
        **(metadata.get("annotations") or {}),
        f"{LABEL}/boot-timeout": f"{identity.boot_timeout:g}",
        # Idle scale-in is the pool's to decide, and a moved runner loses its calls.
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }
    spec["restartPolicy"] = "Never"
    spec["automountServiceAccountToken"] = False
    spec["terminationGracePeriodSeconds"] = identity.grace
    spec.setdefault("enableServiceLinks", False)
    spec.setdefault("securityContext", {}).setdefault(
        "seccompProfile", {"type": "RuntimeDefault"}
    )
    context = runner.setdefault("securityContext", {})
    if not context.get("privileged"):
        context.setdefault("allowPrivilegeEscalation", False)
    runner["command"] = [sys.executable, "-P", "-m", "flame_backend.runner"]
    runner["terminationMessagePolicy"] = "File"
    source = {
        "serviceAccountToken": {
            "audience": identity.audience,
            "expirationSeconds": TOKEN_SECONDS,
            "path": "token",
        }
    }
    volumes = [v for v in spec.get("volumes") or () if v["name"] != TOKEN_VOLUME]
    spec["volumes"] = [
        *volumes,
        {"name": TOKEN_VOLUME, "projected": {"sources": [source]}},
    ]
    runner["volumeMounts"] = [
        *(m for m in runner.get("volumeMounts") or () if m["name"] != TOKEN_VOLUME),
        {"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": True},
    ]
    runner["env"] = [
        # First: $(POD_IP) in a later entry expands only what stands before it.
        *(_downward(name, field) for name, field in _DOWNWARD.items()),
        *runner["env"],
        {"name": "FLAME_PARENT", "value": identity.parent_variable},
    ]


_DOWNWARD: Final = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_UID": "metadata.uid",
    "POD_IP": "status.podIP",
}


def _downward(name: str, field: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}


def _owner(parent: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": parent["metadata"]["name"],
        "uid": parent["metadata"]["uid"],
        # A ReplicaSet adopts matching pods that have no controller.
        "controller": True,
    }
