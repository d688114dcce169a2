"""What a runner takes over from its parent's pod, and what it never does."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any, Final, Literal

from flame_backend.backends.kubernetes.image_name import pinned
from flame_backend.backends.kubernetes.injected import strip_injected
from flame_backend.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Inherit = Literal["app", "image"]

RUNNER_CONTAINER: Final = "flame-runner"

# What the image needs to start: where it comes from, and as whom.
_IMAGE_SPEC: Final = ("imagePullSecrets", "serviceAccountName")
_IMAGE_CONTAINER: Final = ("image", "imagePullPolicy")

# A runner is a copy of the app: same placement, same rights, same network names.
_APP_SPEC: Final = (
    *_IMAGE_SPEC, "affinity", "dnsConfig", "dnsPolicy", "hostAliases", "hostUsers",
    "nodeSelector", "os", "priorityClassName", "resourceClaims", "resources",
    "runtimeClassName", "schedulerName", "securityContext", "tolerations", "volumes",
)  # fmt: skip
_APP_CONTAINER: Final = (
    *_IMAGE_CONTAINER, "env", "envFrom", "resources", "securityContext",
    "volumeDevices", "volumeMounts", "workingDir",
)  # fmt: skip

# Filled in by newer API servers, and refused by older ones for a sidecar.
_NOT_FOR_SIDECARS: Final = ("resizePolicy", "restartPolicyRules")

IDENTITY_LABELS: Final = ("azure.workload.identity/use",)
"""Labels by which clouds give a pod its identity; no selector of an app has them."""

# Set by the kubelet or by us, never the app's.
RESERVED_ENV: Final = re.compile(
    r"(?:FLAME_.*|KUBERNETES_.*|POD_(?:NAME|NAMESPACE|IP|UID))\Z"
)


def app_container(pod: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Return the container of the parent's pod that runners copy.

    Raises:
        ManifestError: There are several and none is named, or the name is unknown.
    """
    containers: list[dict[str, Any]] = pod["spec"]["containers"]
    known = ", ".join(item["name"] for item in containers)
    if name is None and len(containers) > 1:
        raise ManifestError("container", f"the pod has several ({known}); name one")
    for item in containers:
        if name in {None, item["name"]}:
            return item
    raise ManifestError("container", f"the pod has no container {name!r}, only {known}")


def inherited_pod(
    pod: dict[str, Any],
    container: dict[str, Any],
    inherit: Inherit = "app",
    sidecars: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a pod with everything that a runner takes over; shares nothing.

    Left behind: probes, lifecycle hooks, ports, command and arguments, the node,
    numeric priority, host names and namespaces, other containers, annotations, labels
    but the clouds', and every token with what leads to it.

    Args:
        pod: The parent's.
        container: The one of it that is the app.
        inherit: "app" for a copy of the app, "image" for its image and account only.
        sidecars: Containers of the parent's that come along.

    Raises:
        ManifestError: An unknown word, or a sidecar that the parent does not have.
    """
    if inherit not in {"app", "image"}:
        raise ManifestError("inherit", 'must be "app" or "image"')
    app = inherit == "app"
    spec = _copied(pod["spec"], _APP_SPEC if app else _IMAGE_SPEC)
    if "imagePullSecrets" in spec:
        # Charts write one without a name where there is none; the API lets it pass.
        named = [entry for entry in spec["imagePullSecrets"] if entry.get("name")]
        spec["imagePullSecrets"] = named
    runner = _copied(container, _APP_CONTAINER if app else _IMAGE_CONTAINER)
    runner["image"] = _running_image(pod, container)
    beside = [_sidecar(pod, container["name"], name) for name in sidecars]
    if beside:
        volumes = copy.deepcopy(pod["spec"].get("volumes") or [])
        spec.update(initContainers=beside, volumes=volumes)
    strip_injected(spec, [runner, *beside])
    runner["env"] = [
        item for item in runner["env"] if not RESERVED_ENV.match(item["name"])
    ]
    spec["containers"] = [{"name": RUNNER_CONTAINER, **runner}]
    labels = pod["metadata"].get("labels") or {}
    kept = {name: labels[name] for name in IDENTITY_LABELS if name in labels}
    return {"metadata": {"labels": kept}, "spec": spec}


def _copied(source: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    # hostUsers: False is a wish of its own; an empty list or mapping is none.
    found = {field: source.get(field) for field in fields}
    return {
        field: copy.deepcopy(value)
        for field, value in found.items()
        if value or value is False
    }


def _sidecar(pod: dict[str, Any], app: str, name: str) -> dict[str, Any]:
    """Return a parent's container as one that ends with the runner.

    A second ordinary container would keep the pod alive; an init container that is
    always restarted is what Kubernetes calls a sidecar.
    """
    spec = pod["spec"]
    beside = [item for item in spec["containers"] if item["name"] != app]
    for item in (*beside, *(spec.get("initContainers") or ())):
        if item["name"] == name:
            found: dict[str, Any] = copy.deepcopy(item)
            break
    else:
        known = ", ".join(item["name"] for item in beside) or "none"
        reason = f"the pod has no container {name!r} beside its app, only {known}"
        raise ManifestError("sidecars", reason)
    for field in _NOT_FOR_SIDECARS:
        found.pop(field, None)
    for port in found.get("ports") or ():
        port.pop("hostPort", None)
    if name in {item["name"] for item in beside}:
        found["restartPolicy"] = "Always"
    return found


def _running_image(pod: dict[str, Any], container: dict[str, Any]) -> str:
    """Return the image the parent really runs, by digest where the status has one."""
    image: str = container["image"]
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status["name"] == container["name"]:
            return pinned(image, str(status.get("imageID") or ""))
    return image
