"""What a runner takes over from its parent's pod, and what it never does."""

from __future__ import annotations

import copy
import re
from typing import Any, Final

from flame_backend.errors import ManifestError

RUNNER_CONTAINER: Final = "flame-runner"

# A runner is a copy of the app: same placement, same rights, same network names.
_SPEC_FIELDS: Final = (
    "affinity", "dnsConfig", "dnsPolicy", "hostAliases", "imagePullSecrets",
    "nodeSelector", "os", "priorityClassName", "runtimeClassName", "schedulerName",
    "securityContext", "serviceAccountName", "tolerations", "volumes",
)  # fmt: skip
_CONTAINER_FIELDS: Final = (
    "env", "envFrom", "image", "imagePullPolicy", "resources", "securityContext",
    "volumeDevices", "volumeMounts", "workingDir",
)  # fmt: skip

# Labels that clouds read to give a pod its identity; no selector of an app has them.
_IDENTITY_LABELS: Final = ("azure.workload.identity/use",)

_DIGEST: Final = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}\Z")

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


def inherited_pod(pod: dict[str, Any], container: dict[str, Any]) -> dict[str, Any]:
    """Return a pod with everything that a runner takes over; shares nothing.

    Left behind: probes, lifecycle hooks, ports, command and arguments, the node,
    numeric priority, host names, other containers, annotations, and every token: the
    volume of the service account, injected again if wanted, and projected ones.
    """
    spec = {
        field: copy.deepcopy(pod["spec"][field])
        for field in _SPEC_FIELDS
        if pod["spec"].get(field)
    }
    runner = {
        field: copy.deepcopy(container[field])
        for field in _CONTAINER_FIELDS
        if container.get(field)
    }
    runner["image"] = _pinned_image(pod, container)
    dropped = _drop_token_volumes(spec)
    mounts = [m for m in runner.get("volumeMounts", ()) if m["name"] not in dropped]
    runner["volumeMounts"] = mounts
    runner["env"] = [
        item for item in runner.get("env", ()) if not RESERVED_ENV.match(item["name"])
    ]
    spec["containers"] = [{"name": RUNNER_CONTAINER, **runner}]
    labels = pod["metadata"].get("labels") or {}
    kept = {name: labels[name] for name in _IDENTITY_LABELS if name in labels}
    return {"metadata": {"labels": kept}, "spec": spec}


def _drop_token_volumes(spec: dict[str, Any]) -> set[str]:
    """Take every service-account token out of the volumes; return those emptied."""
    dropped: set[str] = set()
    kept = []
    for volume in spec.get("volumes", ()):
        sources = volume.get("projected", {}).get("sources")
        if sources is not None:
            left = [item for item in sources if "serviceAccountToken" not in item]
            if volume["name"].startswith("kube-api-access-") or not left:
                dropped.add(volume["name"])
                continue
            volume["projected"]["sources"] = left
        kept.append(volume)
    spec["volumes"] = kept
    return dropped


def _pinned_image(pod: dict[str, Any], container: dict[str, Any]) -> str:
    """Return the image the parent really runs, by digest where the status has one."""
    image: str = container["image"]
    for status in pod.get("status", {}).get("containerStatuses", ()):
        if status["name"] == container["name"]:
            identity = str(status.get("imageID", ""))
            if _DIGEST.match(identity) and not identity.startswith("sha256:"):
                repository = identity.partition("@")[0]
                if repository.rpartition("/")[0] and _same(repository, image):
                    return identity
    return image


def _same(repository: str, image: str) -> bool:
    return (
        image.partition("@")[0]
        .rsplit(":", 1)[0]
        .endswith(repository.rpartition("/")[2])
    )
