"""Objects that the tests and the demo apply: what a parent needs, and no more."""

from __future__ import annotations

import json
from typing import Any

from tests.cluster.image import IMAGE, PYTHON

RULES: list[dict[str, Any]] = [
    {
        "apiGroups": [""],
        "resources": ["pods"],
        "verbs": ["create", "get", "list", "watch", "delete"],
    },
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
]


def parent_account(
    namespace: str, rules: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Return a service account that may run runners in its namespace."""
    group = "rbac.authorization.k8s.io"
    meta = {"name": "flame-parent", "namespace": namespace}
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
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "flame-parent"},
            "subjects": [
                {
                    "kind": "ServiceAccount",
                    "name": "flame-parent",
                    "namespace": namespace,
                }
            ],
        },
    ]


def parent_pod(
    name: str,
    namespace: str,
    command: list[str],
    *,
    env: dict[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return a pod that runs a command with the project's packages."""
    fields = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}
    entries: list[dict[str, Any]] = [
        {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for variable, path in fields.items()
    ]
    entries += [{"name": key, "value": value} for key, value in (env or {}).items()]
    container = {
        "name": "app",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": command,
        "env": entries,
        "securityContext": {"runAsUser": 1000, "allowPrivilegeEscalation": False},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": "flame-parent",
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
            **spec,
        },
    }


def program(source: str) -> list[str]:
    """Return the command that runs a program given as text."""
    return [PYTHON, "-P", "-c", source]


def listed(objects: list[dict[str, Any]]) -> str:
    """Return objects as one List, for kubectl apply."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
