"""Runner pods as kubelets write them, down to what is read: for unit tests."""

from __future__ import annotations

from typing import Any

RUNNER = "flame-runner"
SCHEDULED = {"type": "PodScheduled", "status": "True"}
SANDBOX = {"type": "PodReadyToStartContainers", "status": "True"}
READY = {"type": "Ready", "status": "True"}
NO_NODE = (
    "0/3 nodes are available: 1 node(s) had untolerated taint "
    "{node-role.kubernetes.io/control-plane: }, 2 Insufficient cpu."
)


def pod(
    state: dict[str, Any] | None = None,
    *conditions: dict[str, Any],
    metadata: dict[str, Any] | None = None,
    init: dict[str, Any] | None = None,
    node: str | None = "worker",
    **status: Any,
) -> dict[str, Any]:
    """Return a runner's pod with its container in a state."""
    found: dict[str, Any] = {"phase": "Pending", "conditions": list(conditions)}
    if state is not None:
        sidecar = {"name": "a-sidecar", "state": {"running": {}}}
        found["containerStatuses"] = [sidecar, {"name": RUNNER, "state": state}]
    if init is not None:
        found["initContainerStatuses"] = [{"name": "setup", **init}]
    meta = {"name": "p-1", "uid": "u-1", **(metadata or {})}
    spec = {} if node is None else {"nodeName": node}
    return {"metadata": meta, "spec": spec, "status": found | status}


def ended(code: int, reason: str = "Error", **more: Any) -> dict[str, Any]:
    """Return the state of a container that ended."""
    facts = {"exitCode": code, "reason": reason, "finishedAt": "2026-03-01T10:00:10Z"}
    return {"terminated": facts | more}


def waits(reason: str, message: str = "") -> dict[str, Any]:
    """Return the state of a container that is not made yet."""
    found = {"reason": reason, "message": message}
    return {"waiting": {key: text for key, text in found.items() if text}}


def disrupted(reason: str, message: str) -> dict[str, Any]:
    """Return the condition of a pod that is being ended from outside."""
    return {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
    }
