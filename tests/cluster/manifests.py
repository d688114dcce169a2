"""Objects that the tests and the demo apply: what a parent needs, and no more."""

from __future__ import annotations

from typing import Any

ACCOUNT = "flame-parent"

RULES: list[dict[str, Any]] = [
    {
        "apiGroups": [""],
        "resources": ["pods"],
        "verbs": ["create", "get", "list", "watch", "delete"],
    },
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
]

# What a pod is told of itself, as the documentation tells users to write it.
_DOWNWARD = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_UID": "metadata.uid",
    "POD_IP": "status.podIP",
}

HOST = "kubernetes.io/hostname"
RUNNERS = {"matchExpressions": [{"key": "flame-backend/pool", "operator": "Exists"}]}


def account(
    name: str = ACCOUNT, rules: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Return a service account that may run runners in its namespace."""
    group = "rbac.authorization.k8s.io"
    meta = {"name": name}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": f"{group}/v1",
            "kind": "Role",
            "metadata": meta,
            "rules": RULES if rules is None else rules,
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name}],
        },
    ]


def pod(
    name: str,
    image: str,
    command: list[str],
    *,
    account_name: str = ACCOUNT,
    env: dict[str, str] | None = None,
    mounts: list[dict[str, Any]] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return a pod that runs a command of the image, as an unprivileged user."""
    entries: list[dict[str, Any]] = [
        {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for variable, path in _DOWNWARD.items()
    ]
    entries += [{"name": key, "value": value} for key, value in (env or {}).items()]
    container = {
        "name": "app",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "env": entries,
        "volumeMounts": mounts or [],
        "securityContext": {"runAsUser": 1000, "allowPrivilegeEscalation": False},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": account_name,
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
            **spec,
        },
    }


def spread(when: str = "DoNotSchedule") -> dict[str, Any]:
    """Return a manifest that spreads runners evenly over the workers."""
    constraint = {
        "maxSkew": 1,
        "topologyKey": HOST,
        "whenUnsatisfiable": when,
        "labelSelector": RUNNERS,
        # A control plane that takes no pods does not count as an empty node.
        "nodeTaintsPolicy": "Honor",
    }
    return {"spec": {"topologySpreadConstraints": [constraint]}}


def listed(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return objects as one List, for kubectl apply."""
    return {"apiVersion": "v1", "kind": "List", "items": objects}
