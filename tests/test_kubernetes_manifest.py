"""The runner's pod: what it inherits, what the user may change, what is forced."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from flame_backend.backends.kubernetes.manifest import (
    RunnerIdentity,
    RunnerOptions,
    runner_pod,
    stages,
)
from flame_backend.backends.kubernetes.provenance import left_behind, origins
from flame_backend.backends.kubernetes.refusals import TOKEN_FOLDER, TOKEN_VOLUME
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


# ------------------------------------------------------------------ inheritance


def test_image_only_inherits_image_and_account() -> None:
    """inherit="image": the rest is for the manifest to say."""
    pod = made(inherit="image", manifest={"spec": {"nodeSelector": {"a": "b"}}})
    assert "registry.example/app@sha256:" + "a" * 64 == runner(pod)["image"]
    assert ("app", {"a": "b"}) == (
        pod["spec"]["serviceAccountName"],
        pod["spec"]["nodeSelector"],
    )
    assert "SETTING" not in env(pod)
    assert not {"resources", "envFrom"} & set(runner(pod))
    assert [TOKEN_VOLUME] == [volume["name"] for volume in pod["spec"]["volumes"]]


def test_unknown_words_are_refused() -> None:
    """Of inherit= and of hardening=."""
    with pytest.raises(ManifestError, match="inherit"):
        made(inherit="all")
    with pytest.raises(ManifestError, match="hardening"):
        made(hardening="baseline")


INJECTED: dict[str, tuple[str, str, dict[str, str]]] = {
    "EKS role": (
        "aws-iam-token",
        "/var/run/secrets/eks.amazonaws.com/serviceaccount",
        {
            "AWS_ROLE_ARN": "arn:aws:iam::1:role/app",
            "AWS_WEB_IDENTITY_TOKEN_FILE": (
                "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"
            ),
        },
    ),
    "EKS pod identity": (
        "eks-pod-identity-token",
        "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount",
        {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": (
                "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount/"
                "eks-pod-identity-token"
            ),
        },
    ),
    "Azure": (
        "azure-identity-token",
        "/var/run/secrets/azure/tokens",
        {
            "AZURE_CLIENT_ID": "c",
            "AZURE_TENANT_ID": "t",
            "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
            "AZURE_FEDERATED_TOKEN_FILE": (
                "/var/run/secrets/azure/tokens/azure-identity-token"
            ),
        },
    ),
    "somebody's": ("their-token", "/their/folder/", {"TOKEN_FILE": "/their/folder/t"}),
}


@pytest.mark.parametrize(
    ("volume", "folder", "variables"), INJECTED.values(), ids=INJECTED.keys()
)
def test_injected_identity_is_left_behind(
    volume: str, folder: str, variables: dict[str, str]
) -> None:
    """Token, mount and variables go together; the webhook brings them again."""
    parent = copy.deepcopy(PARENT)
    source = {"serviceAccountToken": {"audience": "cloud", "path": "token"}}
    parent["spec"]["volumes"].append(
        {"name": volume, "projected": {"sources": [source]}}
    )
    app = parent["spec"]["containers"][0]
    app["volumeMounts"].append({"name": volume, "mountPath": folder})
    app["env"] += [{"name": name, "value": text} for name, text in variables.items()]
    assert made(PARENT) == made(parent)


def test_variables_of_a_cloud_stay_where_nothing_was_injected() -> None:
    """AZURE_CLIENT_ID is the app's own when no token was projected."""
    parent = copy.deepcopy(PARENT)
    entry = {"name": "AZURE_CLIENT_ID", "value": "mine"}
    parent["spec"]["containers"][0]["env"].append(entry)
    assert "mine" == env(made(parent))["AZURE_CLIENT_ID"]


def test_token_secret_of_old_clusters_is_left_behind() -> None:
    """Before 1.22 the API token was a Secret, told by where it is mounted."""
    parent = copy.deepcopy(PARENT)
    secret = {"name": "app-token-x", "secret": {"secretName": "app-token-x"}}
    parent["spec"]["volumes"].append(secret)
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    mount = {"name": "app-token-x", "mountPath": folder}
    parent["spec"]["containers"][0]["volumeMounts"].append(mount)
    assert made(PARENT) == made(parent)


def test_volumes_that_nothing_mounts_stay_behind() -> None:
    """A proxy's volumes do not come without the proxy."""
    parent = copy.deepcopy(PARENT)
    parent["spec"]["volumes"].append({"name": "istio-envoy", "emptyDir": {}})
    assert made(PARENT) == made(parent)


DIGEST = "sha256:" + "a" * 64
IMAGES = {
    "registry": (
        "r.example/app:1",
        f"r.example/app@{DIGEST}",
        f"r.example/app@{DIGEST}",
    ),
    "port": ("r:5000/a/b", f"r:5000/a/b@{DIGEST}", f"r:5000/a/b@{DIGEST}"),
    "short name": (
        "python:3.12",
        f"docker.io/library/python@{DIGEST}",
        f"docker.io/library/python@{DIGEST}",
    ),
    "dockershim": (
        "team/app:1",
        f"docker-pullable://team/app@{DIGEST}",
        f"team/app@{DIGEST}",
    ),
    "pinned already": (
        "app@sha256:" + "b" * 64,
        f"docker.io/library/app@{DIGEST}",
        None,
    ),
    "loaded": ("app:1", DIGEST, None),
    "kind load": ("app:1", f"docker.io/library/import-2026-01-02@{DIGEST}", None),
    "other repository": ("r.example/app:1", f"evil.example/app@{DIGEST}", None),
    "other folder": ("r.example/a/app:1", f"r.example/b/app@{DIGEST}", None),
    "short digest": ("app:1", "docker.io/library/app@sha256:abc", None),
    "none": ("app:1", "", None),
}


@pytest.mark.parametrize(
    ("image", "identity", "expected"), IMAGES.values(), ids=IMAGES.keys()
)
def test_image_is_pinned_when_the_status_names_its_repository(
    image: str, identity: str, expected: str | None
) -> None:
    """By digest, or as it is named."""
    parent = copy.deepcopy(PARENT)
    parent["spec"]["containers"][0]["image"] = image
    parent["status"]["containerStatuses"][0]["imageID"] = identity
    assert (expected or image) == runner(made(parent))["image"]


def test_sidecar_ends_with_the_runner() -> None:
    """A container of the parent's comes along as one that is always restarted."""
    parent = copy.deepcopy(PARENT)
    parent["spec"]["volumes"].append({"name": "socket", "emptyDir": {}})
    proxy = {
        "name": "proxy",
        "image": "p:1",
        "args": ["--run"],
        "ports": [{"containerPort": 5432, "hostPort": 5432}],
        "volumeMounts": [
            {"name": "socket", "mountPath": "/s"},
            {"name": "kube-api-access-x", "mountPath": "/var/run/secrets"},
        ],
    }
    parent["spec"]["containers"].append(proxy)
    pod = made(parent, container="app", sidecars=["proxy"])
    (beside,) = pod["spec"]["initContainers"]
    assert ("Always", ["--run"], "p:1") == (
        beside["restartPolicy"],
        beside["args"],
        beside["image"],
    )
    assert [{"containerPort": 5432}] == beside["ports"]
    assert ["socket"] == [mount["name"] for mount in beside["volumeMounts"]]
    assert 1 == len(pod["spec"]["containers"])
    with pytest.raises(ManifestError, match=r"sidecars.*only proxy"):
        made(parent, container="app", sidecars=["none"])
    with pytest.raises(ManifestError, match="sidecars"):
        made(parent, container="app", sidecars=["app"])


def test_init_containers_of_the_manifest_run_before_the_runner() -> None:
    """They are the user's, and have no mount of the runner's token."""
    prepare = {"name": "prepare", "image": "p", "command": ["true"]}
    pod = made(manifest={"spec": {"initContainers": [prepare]}})
    assert [prepare] == pod["spec"]["initContainers"]


# ------------------------------------------------------------------ merging


def test_variables_keep_their_places() -> None:
    """A replaced one stays before those whose $(VAR) needs it."""
    parent = copy.deepcopy(PARENT)
    app = parent["spec"]["containers"][0]
    app["env"] = [
        {"name": "HOST", "value": "a"},
        {"name": "URL", "value": "http://$(HOST)"},
    ]
    change = {"spec": {"containers": [{"env": [{"name": "HOST", "value": "b"}]}]}}
    for pod in (made(parent, env={"HOST": "b"}), made(parent, manifest=change)):
        names = [entry["name"] for entry in runner(pod)["env"]]
        assert names.index("HOST") < names.index("URL")
        assert "b" == env(pod)["HOST"]


def test_env_option_beats_the_manifest_which_beats_the_app() -> None:
    """And the app beats our defaults."""
    parent = copy.deepcopy(PARENT)
    names = ("A", "B", "PYTHONUNBUFFERED")
    app = parent["spec"]["containers"][0]
    app["env"] = [{"name": name, "value": "app"} for name in names]
    entries = [{"name": name, "value": "manifest"} for name in names[:2]]
    change = {"spec": {"containers": [{"env": entries}]}}
    found = env(made(parent, manifest=change, env={"A": "option"}))
    expected = {"A": "option", "B": "manifest", "PYTHONUNBUFFERED": "app"}
    assert expected == {name: found[name] for name in names}
    assert "1" == found["PYTHONFAULTHANDLER"]


def test_another_source_replaces_a_variable_or_a_volume() -> None:
    """A variable has one source and a volume one kind."""
    reference = {"secretKeyRef": {"name": "s", "key": "k"}}
    pod = made(
        manifest={
            "spec": {
                "volumes": [{"name": "data", "emptyDir": {}}],
                "containers": [{"env": [{"name": "SETTING", "valueFrom": reference}]}],
            }
        }
    )
    (entry,) = [item for item in runner(pod)["env"] if item["name"] == "SETTING"]
    assert {"name": "SETTING", "valueFrom": reference} == entry
    (volume,) = [item for item in pod["spec"]["volumes"] if item["name"] == "data"]
    assert {"name": "data", "emptyDir": {}} == volume


@pytest.mark.parametrize(
    "item",
    [{"name": "data", "$patch": "delete"}, {"name": "data", "configMap": None}],
    ids=["directive", "null"],
)
def test_deleted_volume_takes_its_mounts_along(item: dict[str, Any]) -> None:
    """A mount without its volume would make the pod invalid."""
    pod = made(manifest={"spec": {"volumes": [item]}})
    assert "data" not in {volume["name"] for volume in pod["spec"]["volumes"]}
    assert "data" not in {mount["name"] for mount in runner(pod)["volumeMounts"]}


def test_default_can_be_taken_out() -> None:
    """What we set where the app is silent is not forced."""
    pod = made(
        manifest={
            "metadata": {"annotations": {"karpenter.sh/do-not-disrupt": None}},
            "spec": {
                "enableServiceLinks": None,
                "containers": [{"securityContext": {"allowPrivilegeEscalation": None}}],
            },
        },
        env={"PYTHONUNBUFFERED": None},
    )
    assert "karpenter.sh/do-not-disrupt" not in pod["metadata"]["annotations"]
    assert "enableServiceLinks" not in pod["spec"]
    assert "allowPrivilegeEscalation" not in runner(pod)["securityContext"]
    assert "PYTHONUNBUFFERED" not in env(pod)


@pytest.mark.parametrize(
    "wish", [{"privileged": True}, {"capabilities": {"add": ["SYS_ADMIN"]}}]
)
def test_default_gives_way_to_privileges(wish: dict[str, Any]) -> None:
    """The API refuses allowPrivilegeEscalation: false beside them."""
    pod = made(manifest={"spec": {"containers": [{"securityContext": wish}]}})
    assert wish == runner(pod)["securityContext"]


def test_lifetime_is_the_clusters_backstop() -> None:
    """In whole seconds, never less than the pool's."""
    identity = dataclasses.replace(IDENTITY, max_lifetime=1.5)
    pod = runner_pod(PARENT, RunnerOptions(python="/app/python"), identity)
    assert 2 == pod["spec"]["activeDeadlineSeconds"]
    assert "/app/python" == runner(pod)["command"][0]
    assert "activeDeadlineSeconds" not in made()["spec"]


def test_runner_of_a_runner_has_one_token() -> None:
    """A runner's pod as the parent: its token volume is replaced, not doubled."""
    first = made()
    first["metadata"]["uid"] = "uid-runner"
    second = made(first)
    names = [volume["name"] for volume in second["spec"]["volumes"]]
    assert 1 == names.count(TOKEN_VOLUME)
    folders = [mount["mountPath"] for mount in runner(second)["volumeMounts"]]
    assert 1 == folders.count(TOKEN_FOLDER)


# ------------------------------------------------------------------ restricted


def test_restricted_tightens_what_the_app_leaves_open() -> None:
    """The inherited privileges go, what the profile demands is set."""
    parent = copy.deepcopy(PARENT)
    parent["spec"]["containers"][0]["securityContext"] = {
        "privileged": True,
        "capabilities": {"add": ["SYS_ADMIN", "NET_BIND_SERVICE"]},
        "seccompProfile": {"type": "Unconfined"},
        "runAsNonRoot": False,
        "procMount": "Unmasked",
    }
    pod = made(parent, hardening="restricted")
    assert {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    } == runner(pod)["securityContext"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert 1000 == pod["spec"]["securityContext"]["runAsUser"]


UNRESTRICTED: dict[str, tuple[dict[str, Any], str]] = {
    "root": (
        {"securityContext": {"runAsUser": 0}},
        r"spec\.securityContext\.runAsUser",
    ),
    "root container": (
        {"containers": [{"securityContext": {"runAsUser": 0}}]},
        r"containers\[flame-runner\]\.securityContext\.runAsUser",
    ),
    "host path": (
        {"volumes": [{"name": "data", "hostPath": {"path": "/"}}]},
        r"spec\.volumes\[data\]\.hostPath.*\$patch",
    ),
    "sysctl": (
        {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
        r"sysctls\[kernel\.msgmax\]",
    ),
    "host port": (
        {"containers": [{"ports": [{"containerPort": 1, "hostPort": 1}]}]},
        "hostPort",
    ),
    "SELinux user": (
        {"securityContext": {"seLinuxOptions": {"user": "u"}}},
        r"seLinuxOptions\.user",
    ),
    "host process": (
        {"securityContext": {"windowsOptions": {"hostProcess": True}}},
        "hostProcess",
    ),
    "root sidecar": (
        {
            "initContainers": [
                {"name": "s", "image": "s", "securityContext": {"runAsUser": 0}}
            ]
        },
        r"initContainers\[s\]",
    ),
}


@pytest.mark.parametrize(
    ("spec", "field"), UNRESTRICTED.values(), ids=UNRESTRICTED.keys()
)
def test_restricted_refuses_what_needs_a_choice(spec: Any, field: str) -> None:
    """With the path; without the option the same manifest is the user's business."""
    made(manifest={"spec": spec})
    with pytest.raises(ManifestError, match=field):
        made(manifest={"spec": spec}, hardening="restricted")


# ------------------------------------------------------------------ provenance


def test_origin_of_every_field_is_known() -> None:
    """Each stage's fields carry its name, and the last pod is the one to post."""
    options = RunnerOptions(
        manifest={"spec": {"nodeSelector": {"disk": "ssd"}}},
        env={"MORE": "1", "SETTING": "2"},
        resources={"limits": {"cpu": "1"}},
        hardening="restricted",
    )
    steps = stages(PARENT, options, IDENTITY)
    found = origins(steps)
    assert runner_pod(PARENT, options, IDENTITY) == steps[-1][1]
    container = "spec.containers[flame-runner]"
    expected = {
        f"{container}.image": "inherited from app",
        "spec.nodeSelector.pool": "inherited from app",
        "spec.enableServiceLinks": "default",
        "spec.nodeSelector.disk": "manifest",
        f"{container}.env[SETTING].value": "option",
        f"{container}.env[MORE].value": "option",
        f"{container}.resources.limits.cpu": "option",
        "spec.securityContext.runAsNonRoot": "hardening",
        "spec.restartPolicy": "flame-backend",
        "metadata.labels[flame-backend/pool]": "flame-backend",
    }
    assert expected == {path: found[path][0] for path in expected}


def test_what_stays_behind_is_listed() -> None:
    """By field, for the parent's spec and labels."""
    missing = left_behind(PARENT, "app", made())
    assert {
        "spec.nodeName",
        "spec.priority",
        "spec.containers[app].ports",
        "spec.containers[app].livenessProbe",
        "spec.volumes[kube-api-access-x]",
        "metadata.labels[app]",
        "metadata.labels[pod-template-hash]",
    } == set(missing)
