"""The runner's pod: what it inherits, what the user may change, what is forced."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from flame_backend.backends.kubernetes.manifest import (
    RunnerIdentity,
    RunnerOptions,
    runner_pod,
)
from flame_backend.errors import ManifestError

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


def test_runner_is_a_copy_of_the_app() -> None:
    """Image by digest, environment, resources, placement, account, volumes."""
    pod = made()
    assert "registry.example/app@sha256:" + "a" * 64 == runner(pod)["image"]
    assert "1" == env(pod)["SETTING"]
    assert {"limits": {"memory": "1Gi"}} == runner(pod)["resources"]
    assert ("app", {"pool": "cpu"}, 1000) == (
        pod["spec"]["serviceAccountName"],
        pod["spec"]["nodeSelector"],
        pod["spec"]["securityContext"]["runAsUser"],
    )
    assert "/data" in {mount["mountPath"] for mount in runner(pod)["volumeMounts"]}


def test_runner_leaves_behind_what_is_the_parents_alone() -> None:
    """No probe, port, command, node, priority, label that a controller selects by."""
    pod = made()
    assert not {"ports", "livenessProbe", "lifecycle"} & set(runner(pod))
    assert not {"nodeName", "priority"} & set(pod["spec"])
    labels = pod["metadata"]["labels"]
    assert not {"app", "pod-template-hash"} & set(labels)
    assert "true" == labels["azure.workload.identity/use"]
    assert "serve" not in runner(pod)["command"]


def test_runner_has_one_token_and_it_is_ours() -> None:
    """Every other service-account token is taken out of the volumes."""
    pod = made()
    tokens = [
        source["serviceAccountToken"]
        for volume in pod["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
        if "serviceAccountToken" in source
    ]
    assert [IDENTITY.audience] == [token.get("audience") for token in tokens]
    assert pod["spec"]["automountServiceAccountToken"] is False
    mounted = {mount["name"] for mount in runner(pod)["volumeMounts"]}
    assert mounted <= {volume["name"] for volume in pod["spec"]["volumes"]}
    assert "mixed" in {volume["name"] for volume in pod["spec"]["volumes"]}


def test_reserved_variables_are_the_runners_own() -> None:
    """The parent's values of them do not come along, and ours stand in order."""
    pod = made()
    names = [entry["name"] for entry in runner(pod)["env"]]
    assert "FLAME_OLD" not in names
    assert ["POD_NAME", "POD_NAMESPACE", "POD_UID", "POD_IP"] == names[:4]
    assert "FLAME_PARENT" == names[-1]


def test_dict_yaml_and_callback_say_the_same() -> None:
    """Three ways to write one change."""
    change = {"spec": {"containers": [{"resources": {"limits": {"cpu": "2"}}}]}}
    text = "spec: {containers: [{resources: {limits: {cpu: '2'}}}]}"
    expected = made(manifest=change)
    assert {"memory": "1Gi", "cpu": "2"} == runner(expected)["resources"]["limits"]
    assert expected == made(manifest=text)
    assert expected == made(manifest=lambda pod, app: change)


def test_none_deletes_an_inherited_field() -> None:
    """In the manifest and in env."""
    pod = made(
        manifest={"spec": {"nodeSelector": None, "containers": [{"resources": None}]}},
        env={"SETTING": None, "MORE": "2"},
    )
    assert "nodeSelector" not in pod["spec"]
    assert "resources" not in runner(pod)
    assert ("2", False) == (env(pod)["MORE"], "SETTING" in env(pod))


def test_inputs_are_not_changed() -> None:
    """A callback may change its copies; the parent's pod stays as it was."""
    before = copy.deepcopy(PARENT)
    change = {
        "spec": {"containers": [{"name": "x", "env": [{"name": "A", "value": "1"}]}]}
    }
    kept = copy.deepcopy(change)
    made(manifest=change)
    made(manifest=lambda pod, app: pod["spec"].clear() or {})
    assert before == PARENT
    assert kept == change


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
}


@pytest.mark.parametrize(("manifest", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_forbidden_field_is_refused_with_its_path(manifest: Any, field: str) -> None:
    """Whatever would take a runner out of our hands."""
    with pytest.raises(ManifestError, match=field):
        made(manifest=manifest)


@pytest.mark.parametrize(
    "name", ["FLAME_X", "KUBERNETES_SERVICE_HOST", "POD_IP", "", "A=B"]
)
def test_reserved_variable_is_refused(name: str) -> None:
    """In env= as in the manifest."""
    with pytest.raises(ManifestError):
        made(env={name: "x"})


def test_several_containers_need_a_name() -> None:
    """No guess which one is the app."""
    parent = copy.deepcopy(PARENT)
    parent["spec"]["containers"].append({"name": "proxy", "image": "p"})
    with pytest.raises(ManifestError, match="app, proxy"):
        made(parent)
    assert "p" == runner(made(parent, container="proxy"))["image"]
    with pytest.raises(ManifestError, match="none"):
        made(parent, container="none")


def test_defaults_tighten_only_what_the_app_left_open() -> None:
    """Seccomp and privilege escalation, unless the app says otherwise."""
    pod = made()
    assert "RuntimeDefault" == pod["spec"]["securityContext"]["seccompProfile"]["type"]
    assert runner(pod)["securityContext"]["allowPrivilegeEscalation"] is False
    parent = copy.deepcopy(PARENT)
    parent["spec"]["securityContext"]["seccompProfile"] = {"type": "Unconfined"}
    own = made(parent)["spec"]["securityContext"]["seccompProfile"]
    assert {"type": "Unconfined"} == own
