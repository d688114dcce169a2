"""What a runner's manifest may not say: each with its path."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from flame_backend.backends.kubernetes.backend import KubernetesBackend
from flame_backend.errors import ConfigurationError, ManifestError
from tests.runner_manifests import made


def _adds(capabilities: Any) -> dict[str, Any]:
    context = {"capabilities": {"add": capabilities}}
    return {"name": "i", "securityContext": context}


REFUSED: dict[str, tuple[Any, str]] = {
    "callback": (lambda pod, app: {}[1], "KeyError"),
    "name": ({"metadata": {"name": "x"}}, "metadata.name"),
    "namespace": ({"metadata": {"namespace": "x"}}, "metadata.namespace"),
    "owner": ({"metadata": {"ownerReferences": []}}, "ownerReferences"),
    "node": ({"spec": {"nodeName": "n"}}, "spec.nodeName"),
    "restart": ({"spec": {"restartPolicy": "Always"}}, "restartPolicy"),
    "host network": ({"spec": {"hostNetwork": True}}, "hostNetwork"),
    "API token": ({"spec": {"automountServiceAccountToken": True}}, "automount"),
    "command": ({"spec": {"containers": [{"command": ["x"]}]}}, "command"),
    "sidecar": ({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}, "containers"),
    "adoption": ({"metadata": {"labels": {"pod-template-hash": "x"}}}, "labels"),
    "our label": ({"metadata": {"labels": {"flame-backend/pool": "x"}}}, "labels"),
    "our variable": (
        {"spec": {"containers": [{"env": [{"name": "FLAME_PARENT", "value": "x"}]}]}},
        "FLAME_PARENT",
    ),
    "kind": ({"kind": "Deployment"}, "kind"),
    "list": ([], "manifest"),
    "text": ("just text", "manifest"),
    "broken YAML": ("a: [", "YAML"),
    "volume without name": ({"spec": {"volumes": [{}]}}, r"volumes\[0\]"),
    "finalizer": ({"metadata": {"finalizers": ["x"]}}, "metadata.finalizers"),
    "grace": ({"spec": {"terminationGracePeriodSeconds": 5}}, "shutdown_timeout"),
    "priority": ({"spec": {"priority": 5}}, "priorityClassName"),
    "old account": ({"spec": {"serviceAccount": "x"}}, "serviceAccountName"),
    "shared processes": ({"spec": {"shareProcessNamespace": True}}, "shareProcess"),
    "status": ({"status": {}}, "manifest.status"),
    "restarts": ({"spec": {"containers": [{"restartPolicy": "Always"}]}}, "restartP"),
    "message": (
        {"spec": {"containers": [{"terminationMessagePolicy": "File"}]}},
        "terminationMessagePolicy",
    ),
    "no spec": ({"spec": None}, "manifest.spec"),
    "no container": ({"spec": {"containers": None}}, "spec.containers"),
    "deleted container": (
        {"spec": {"containers": [{"$patch": "delete"}]}},
        r"containers\[0\].\$patch",
    ),
    "no image": ({"spec": {"containers": [{"image": None}]}}, "image"),
    "our container": (
        {"spec": {"initContainers": [{"name": "flame-runner"}]}},
        r"initContainers\[0\].name",
    ),
    "our volume": ({"spec": {"volumes": [{"name": "flame-token"}]}}, r"volumes\[0\]"),
    "our token for another": (
        {
            "spec": {
                "initContainers": [
                    {"name": "spy", "volumeMounts": [{"name": "flame-token"}]}
                ]
            }
        },
        r"initContainers\[0\].volumeMounts\[0\]",
    ),
    "over our token": (
        {
            "spec": {
                "containers": [
                    {
                        "volumeMounts": [
                            {"name": "x", "mountPath": "/var/run/secrets/flame/"}
                        ]
                    }
                ]
            }
        },
        r"volumeMounts\[0\]",
    ),
    "our annotation": ({"metadata": {"annotations": {"flame-backend/x": "y"}}}, "anno"),
    "manager": (
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}},
        "managed-by",
    ),
    "selector of the app": ({"metadata": {"labels": {"app": "web"}}}, r"labels\[app\]"),
    "labels of a job": ({"metadata": {"labels": {"job-name": "x"}}}, "job-name"),
    "shape of spec": ({"spec": []}, "manifest.spec"),
    "shape of containers": ({"spec": {"containers": {}}}, "spec.containers"),
    "shape of a container": ({"spec": {"containers": ["x"]}}, r"containers\[0\]"),
    "shape of a selector": ({"spec": {"nodeSelector": "x"}}, "spec.nodeSelector"),
    "shape of variables": ({"spec": {"containers": [{"env": {}}]}}, "env"),
    "key that is no text": ("spec: {nodeSelector: {on: x}}", "spec.nodeSelector"),
    "value without JSON": ("spec: {nodeSelector: {d: 2026-01-02}}", "nodeSelector.d"),
    "endless number": ({"spec": {"x": float("inf")}}, "spec.x"),
    "object": ({"spec": {"x": object()}}, "spec.x"),
    "number as a variable": (
        "spec: {containers: [{env: [{name: A, value: 5}]}]}",
        r"env\[A\].value: must be text",
    ),
    "number as a label": ("metadata: {labels: {a: 5}}", r"labels\[a\]: must be text"),
    "key that stands twice": (
        "spec: {nodeSelector: {a: b}}\nspec: {tolerations: []}",
        r"the key spec stands twice \(line 2\)",
    ),
    "key of a merge that stands twice": (
        "metadata: {labels: &a {x: y}}\nspec: {nodeSelector: {<<: *a, z: q, z: r}}",
        "the key z stands twice",
    ),
    "several documents": ("{}\n---\n{}", "one document"),
    "13th month": ("metadata: {annotations: {d: 2026-13-01}}", "not YAML: month"),
    "number that is none": ("a: !!int x", "not YAML: invalid literal"),
    "deep YAML": ("[" * 5000 + "]" * 5000, "not YAML: maximum recursion"),
    "aliases of aliases": (
        "a0: &a0 [x, x]\n"
        + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40)),
        "1000000th value",
    ),
    "callback that exits": (lambda pod, app: sys.exit(3), "SystemExit: 3"),
    "number of many digits": ({"spec": {"x": 2**63}}, "spec.x: .*64 bits"),
    "volume that stands twice": (
        {"spec": {"volumes": [{"name": "v", "emptyDir": {}}, {"name": "v"}]}},
        r"volumes\[v\]: stands twice",
    ),
    "mount of no volume": (
        {
            "spec": {
                "volumes": [{"name": "scratch", "emptyDir": {}}],
                "containers": [
                    {"volumeMounts": [{"name": "scrtch", "mountPath": "/s"}]}
                ],
            }
        },
        r"volumeMounts\[/s\]: there is no volume 'scrtch'",
    ),
    "mount of an init container": (
        {
            "spec": {
                "initContainers": [{"name": "i", "volumeMounts": [{"mountPath": "/s"}]}]
            }
        },
        r"initContainers\[i\].volumeMounts\[/s\]: there is no volume None",
    ),
    "shape of capabilities": (
        {"spec": {"containers": [{"securityContext": {"capabilities": ["X"]}}]}},
        r"containers\[0\].securityContext.capabilities: must be a mapping",
    ),
    "shape of added capabilities": (
        {"spec": {"initContainers": [_adds("SYS_ADMIN")]}},
        r"initContainers\[0\].securityContext.capabilities.add: must be a list",
    ),
    "shape of a profile": (
        {"spec": {"securityContext": {"seccompProfile": "RuntimeDefault"}}},
        "spec.securityContext.seccompProfile: must be a mapping",
    ),
    "shape of sysctls": ({"spec": {"securityContext": {"sysctls": ["x"]}}}, "sysctls"),
    "shape of ports": ({"spec": {"containers": [{"ports": [80]}]}}, r"ports\[0\]"),
    "directive": ({"spec": {"nodeSelector": {"$patch": "replace"}}}, "None deletes"),
    "other directive": (
        {"spec": {"volumes": [{"name": "data", "$patch": "replace"}]}},
        "only delete",
    ),
}


@pytest.mark.parametrize(("manifest", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_forbidden_field_is_refused_with_its_path(manifest: Any, field: str) -> None:
    """Whatever would take a runner out of our hands."""
    with pytest.raises(ManifestError, match=field):
        made(manifest=manifest)


def test_account_without_a_name_is_refused() -> None:
    """A setting that is not set is not a wish for the app's own account."""
    with pytest.raises(ManifestError, match="service_account"):
        made(service_account="")
    with pytest.raises(ConfigurationError, match="namespace"):
        KubernetesBackend(namespace="")


@pytest.mark.parametrize(
    "name", ["FLAME_X", "KUBERNETES_SERVICE_HOST", "POD_IP", "", "A=B"]
)
def test_reserved_variable_is_refused(name: str) -> None:
    """In env= as in the manifest."""
    with pytest.raises(ManifestError):
        made(env={name: "x"})
