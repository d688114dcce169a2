"""A parent, and the pods of its runners, for the tests of manifests."""

from __future__ import annotations

from typing import Any

from flame_backend.backends.kubernetes.manifest import (
    RunnerIdentity,
    RunnerOptions,
    runner_pod,
)

PARENT: dict[str, Any] = {
    "metadata": {
        "name": "web-5d9",
        "namespace": "apps",
        "uid": "uid-parent",
        "labels": {
            "app": "web",
            "pod-template-hash": "5d9",
            "azure.workload.identity/use": "true",
        },
        "annotations": {"a": "b"},
    },
    "spec": {
        "nodeName": "node-1",
        "priority": 5,
        "serviceAccountName": "app",
        "securityContext": {"runAsUser": 1000},
        "nodeSelector": {"pool": "cpu"},
        "volumes": [
            {"name": "data", "configMap": {"name": "data"}},
            {
                "name": "kube-api-access-x",
                "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]},
            },
            {
                "name": "mixed",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"path": "t"}},
                        {"configMap": {"name": "c"}},
                    ]
                },
            },
        ],
        "containers": [
            {
                "name": "app",
                "image": "registry.example/app:1",
                "command": ["serve"],
                "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"path": "/"}},
                "env": [
                    {"name": "SETTING", "value": "1"},
                    {"name": "POD_NAME", "value": "x"},
                    {"name": "FLAME_OLD", "value": "x"},
                ],
                "resources": {"limits": {"memory": "1Gi"}},
                "volumeMounts": [
                    {"name": "data", "mountPath": "/data"},
                    {"name": "mixed", "mountPath": "/mixed"},
                    {"name": "kube-api-access-x", "mountPath": "/var/run/secrets"},
                ],
            }
        ],
    },
    "status": {
        "containerStatuses": [
            {"name": "app", "imageID": "registry.example/app@sha256:" + "a" * 64}
        ]
    },
}
IDENTITY = RunnerIdentity(
    name="pool-abc",
    pool="pool",
    instance="f00d",
    process="beef",
    audience="flame-backend/uid-parent/pool-abc",
    parent_variable="{}",
    boot_timeout=60,
    grace=30,
)


def made(parent: dict[str, Any] = PARENT, **options: Any) -> dict[str, Any]:
    """Build a runner's pod."""
    return runner_pod(parent, RunnerOptions(**options), IDENTITY)


def runner(pod: dict[str, Any]) -> dict[str, Any]:
    """Return its one container."""
    (container,) = pod["spec"]["containers"]
    return dict(container)


def env(pod: dict[str, Any]) -> dict[str, Any]:
    """Return its variables; each name stands once."""
    entries = runner(pod)["env"]
    assert len(entries) == len({entry["name"] for entry in entries})
    return {entry["name"]: entry.get("value") for entry in entries}
