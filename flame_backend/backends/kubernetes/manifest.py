"""The runner's pod: inherited, changed by the user, and our fields last.

Pure: dicts in, a new dict out; nothing that was passed in is changed. The user's part
is a dict, YAML text or a callback; None in it deletes an inherited field, containers,
environment and volumes are merged by name. Fields that would take a runner out of our
hands are refused with their path. `stages` keeps the pod after each step, so that
`flame-backend render --explain` can say where a field came from.
"""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from flame_backend.backends.kubernetes.hardening import (
    restrict,
    set_defaults,
    settle_escalation,
)
from flame_backend.backends.kubernetes.merging import merged, plain
from flame_backend.backends.kubernetes.mounts import settle_claims, settle_volumes
from flame_backend.backends.kubernetes.pod_template import (
    RUNNER_CONTAINER,
    app_container,
    inherited_pod,
)
from flame_backend.backends.kubernetes.refusals import (
    BOOT_TIMEOUT,
    INSTANCE,
    KEEP_FAILED,
    LABEL,
    MANAGED_BY,
    PROCESS,
    TOKEN_FOLDER,
    TOKEN_VOLUME,
    refuse_forbidden,
    refuse_variable,
)
from flame_backend.backends.kubernetes.shapes import RESOURCES, check_shape
from flame_backend.backends.kubernetes.yaml_text import parsed
from flame_backend.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flame_backend.backends.kubernetes.pod_template import Inherit

    Manifest = (
        Mapping[str, Any]
        | str
        | Callable[[dict[str, Any], dict[str, Any]], Mapping[str, Any] | str]
    )
    Hardening = Literal["inherit", "restricted"]

__all__ = [
    "LABEL",
    "PARENT_NAMESPACE",
    "TOKEN_PATH",
    "TOKEN_SECONDS",
    "RunnerIdentity",
    "RunnerOptions",
    "runner_pod",
    "stages",
]

TOKEN_SECONDS: Final = 600
"""The shortest life the API server grants a projected token."""

TOKEN_PATH: Final = f"{TOKEN_FOLDER}/token"

PARENT_NAMESPACE: Final = f"{LABEL}/parent-namespace"
"""Annotation: where the parent's pod is."""

# The tail of a crashed process' output is the answer to most questions.
_DEFAULT_ENV: Final = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}

# Idle scale-in is the pool's to decide, and a moved runner loses its calls.
_DEFAULT_ANNOTATIONS: Final = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}

_DOWNWARD: Final = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_UID": "metadata.uid",
    "POD_IP": "status.podIP",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerIdentity:
    """What makes a pod this runner.

    Attributes:
        name: Name of runner and pod.
        pool: Name of the pool.
        instance: The pool object's identity.
        process: Identity of the process whose pools are watched together.
        audience: Of its token; no other runner has it.
        parent_variable: Text of FLAME_PARENT.
        boot_timeout: Seconds after which a Pending one may be swept.
        grace: terminationGracePeriodSeconds.
        keep_failed: Seconds for which it is kept when it has failed.
        owner: Owner reference in place of the parent's pod.
        max_lifetime: Seconds after which the cluster ends it, whatever the pool does.
    """

    name: str
    pool: str
    instance: str
    process: str
    audience: str
    parent_variable: str
    boot_timeout: float
    grace: int
    keep_failed: float = 0.0
    owner: Mapping[str, Any] | None = None
    max_lifetime: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """The user's say: see `KubernetesBackend`.

    Attributes:
        manifest: What differs from the parent's pod: dict, YAML text or callback.
        env: Variables; None deletes an inherited one.
        resources: Replaces the container's.
        container: The parent's container to copy.
        service_account: Account of the runners; None for the parent's.
        owner_reference: Let the cluster remove runners with the parent's pod.
        inherit: "app" for a copy of the app, "image" for its image and account.
        hardening: "restricted" makes the pod fit the profile of that name.
        sidecars: Containers of the parent's pod that come along.
        python: The runner image's interpreter; None for this process' own.
    """

    manifest: Manifest | None = None
    env: Mapping[str, str | None] | None = None
    resources: Mapping[str, Any] | None = None
    container: str | None = None
    service_account: str | None = None
    owner_reference: bool = True
    inherit: Inherit = "app"
    hardening: Hardening = "inherit"
    sidecars: Sequence[str] = ()
    python: str | None = None


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
    *_, (_, pod) = _steps(parent_pod, options, identity)
    return pod


def stages(
    parent_pod: Mapping[str, Any], options: RunnerOptions, identity: RunnerIdentity
) -> list[tuple[str, dict[str, Any]]]:
    """Build the same pod and return it after each step, with the step's name.

    Raises:
        ManifestError: Names the field and the rule.
    """
    steps = _steps(parent_pod, options, identity)
    return [(name, copy.deepcopy(pod)) for name, pod in steps]


def _steps(
    parent_pod: Mapping[str, Any], options: RunnerOptions, identity: RunnerIdentity
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the pod after each step; the same one, changed further by the next."""
    if options.hardening not in {"inherit", "restricted"}:
        raise ManifestError("hardening", 'must be "inherit" or "restricted"')
    parent = copy.deepcopy(dict(parent_pod))
    container = app_container(parent, options.container)
    user = _user_manifest(options.manifest, parent, container)
    refuse_forbidden(user, parent)
    pod = inherited_pod(parent, container, options.inherit, options.sidecars)
    yield f"inherited from {container['name']}", pod
    _set_defaults(pod)
    yield "default", pod
    pod = merged(pod, _aimed(user), "manifest")
    _settle(pod, user, parent)
    yield "manifest", pod
    _apply_options(pod, options)
    yield "option", pod
    if options.hardening == "restricted":
        restrict(pod)
        yield "hardening", pod
    _force(pod, options, identity)
    _force_parent(pod["metadata"], parent)
    if options.owner_reference:
        pod["metadata"]["ownerReferences"] = [dict(identity.owner or _owner(parent))]
    yield "flame-backend", pod


# ------------------------------------------------------------------ the user's part


def _user_manifest(
    manifest: Manifest | None, parent: dict[str, Any], container: dict[str, Any]
) -> dict[str, Any]:
    found: Any = {} if manifest is None else manifest
    if callable(manifest):
        found = _called(manifest, parent, container)
    if isinstance(found, str):
        documents = parsed(found, "manifest")
        if len(documents) > 1:
            raise ManifestError("manifest", "must be one document")
        found = documents[0] if documents else None
    found = plain(found, "manifest")
    if not isinstance(found, dict):
        raise ManifestError("manifest", "must be a mapping")
    return found


def _called(
    callback: Callable[[dict[str, Any], dict[str, Any]], Mapping[str, Any] | str],
    parent: dict[str, Any],
    container: dict[str, Any],
) -> object:
    try:
        return callback(copy.deepcopy(parent), copy.deepcopy(container))
    except (Exception, SystemExit) as error:
        # In a worker's thread nothing would be heard of an exit.
        reason = f"the callback raised {type(error).__name__}: {error}"
        raise ManifestError("manifest", reason) from error


def _aimed(user: dict[str, Any]) -> dict[str, Any]:
    """Aim the user's one container at the runner's, whatever it is called."""
    for item in (user.get("spec") or {}).get("containers") or ():
        item["name"] = RUNNER_CONTAINER
    return user


def _set_defaults(pod: dict[str, Any]) -> None:
    """Set what the app leaves open; the user's manifest may still take it out."""
    set_defaults(pod)
    env = pod["spec"]["containers"][0]["env"]
    known = {entry["name"] for entry in env}
    env.extend(
        {"name": name, "value": value}
        for name, value in _DEFAULT_ENV.items()
        if name not in known
    )
    pod["metadata"]["annotations"] = dict(_DEFAULT_ANNOTATIONS)


def _settle(pod: dict[str, Any], user: dict[str, Any], parent: dict[str, Any]) -> None:
    """Follow up on what the manifest took out and put in."""
    if not _runner(pod).get("image"):
        reason = "a runner needs an image"
        raise ManifestError("manifest.spec.containers[0].image", reason)
    settle_escalation(pod)
    settle_volumes(pod["spec"], user.get("spec") or {}, parent["spec"])


def _apply_options(pod: dict[str, Any], options: RunnerOptions) -> None:
    runner, spec = _runner(pod), pod["spec"]
    if options.resources is not None:
        runner["resources"] = plain(options.resources, "resources")
        check_shape(runner["resources"], RESOURCES, "resources")
        # The parent's sum over its containers says nothing of this one.
        spec.pop("resources", None)
        settle_claims(spec)
    _apply_env(runner, options.env or {})
    if options.service_account == "":
        raise ManifestError("service_account", "a name, or None for the parent's own")
    if options.service_account:
        spec["serviceAccountName"] = options.service_account


def _apply_env(runner: dict[str, Any], env: Mapping[str, str | None]) -> None:
    """Set variables where they stand: $(VAR) expands only what comes before it."""
    entries = {entry["name"]: entry for entry in runner.get("env") or ()}
    for name, value in env.items():
        refuse_variable(name, "env")
        if value is None:
            entries.pop(name, None)
        elif isinstance(value, str):
            entries[name] = {"name": name, "value": value}
        else:
            raise ManifestError(f"env[{name}]", "must be text")
    runner["env"] = list(entries.values())


def _runner(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod["spec"]["containers"][0]
    return found


# ------------------------------------------------------------------ ours, and last


def _force(
    pod: dict[str, Any], options: RunnerOptions, identity: RunnerIdentity
) -> None:
    """Set what makes it a runner; nothing of the user's comes after this."""
    pod["apiVersion"], pod["kind"] = "v1", "Pod"
    metadata, spec, runner = pod.setdefault("metadata", {}), pod["spec"], _runner(pod)
    metadata["name"] = identity.name
    metadata["labels"] = {
        **(metadata.get("labels") or {}),
        MANAGED_BY: LABEL,
        f"{LABEL}/pool": identity.pool,
        INSTANCE: identity.instance,
        PROCESS: identity.process,
    }
    metadata["annotations"] = {
        **(metadata.get("annotations") or {}),
        BOOT_TIMEOUT: f"{identity.boot_timeout:g}",
    }
    if identity.keep_failed:
        metadata["annotations"][KEEP_FAILED] = f"{identity.keep_failed:g}"
    spec["restartPolicy"] = "Never"
    spec["automountServiceAccountToken"] = False
    spec["terminationGracePeriodSeconds"] = identity.grace
    if identity.max_lifetime is not None:
        spec["activeDeadlineSeconds"] = max(1, math.ceil(identity.max_lifetime))
    python = options.python or sys.executable
    # -P: what lies in the working folder does not get imported as ours.
    runner["command"] = [python, "-P", "-m", "flame_backend.runner"]
    # User exceptions stay out of what `get pods` shows.
    runner["terminationMessagePolicy"] = "File"
    _force_token(spec, runner, identity.audience)
    runner["env"] = [
        # First: $(POD_IP) in a later entry expands only what stands before it.
        *(_downward(name, field) for name, field in _DOWNWARD.items()),
        *runner["env"],
        {"name": "FLAME_PARENT", "value": identity.parent_variable},
    ]
    if not runner.get("resources"):
        runner.pop("resources", None)


def _force_token(spec: dict[str, Any], runner: dict[str, Any], audience: str) -> None:
    source = {
        "serviceAccountToken": {
            "audience": audience,
            "expirationSeconds": TOKEN_SECONDS,
            "path": "token",
        }
    }
    # A runner's own runners inherit from it: its token is not among what they get.
    spec["volumes"] = [
        *(v for v in spec["volumes"] if v["name"] != TOKEN_VOLUME),
        {"name": TOKEN_VOLUME, "projected": {"sources": [source]}},
    ]
    runner["volumeMounts"] = [
        *(m for m in runner.get("volumeMounts") or () if m["name"] != TOKEN_VOLUME),
        {"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": True},
    ]


def _downward(name: str, field: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}


def _force_parent(metadata: dict[str, Any], parent: dict[str, Any]) -> None:
    # For people, and for sweeps of runners that have no owner.
    name, uid = parent["metadata"]["name"], parent["metadata"]["uid"]
    ours = {f"{LABEL}/parent": name, f"{LABEL}/parent-uid": uid}
    # Of another namespace than theirs, perhaps.
    ours[PARENT_NAMESPACE] = str(parent["metadata"].get("namespace") or "")
    metadata["annotations"].update(ours)


def _owner(parent: dict[str, Any]) -> dict[str, Any]:
    # A ReplicaSet adopts matching pods that have no controller.
    owner = {"apiVersion": "v1", "kind": "Pod", "controller": True}
    return owner | {key: parent["metadata"][key] for key in ("name", "uid")}
