"""The runner's pod: what the user may change, what is forced, and why it is so."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from flame_backend.backends.kubernetes.manifest import (
    RunnerOptions,
    runner_pod,
    stages,
)
from flame_backend.backends.kubernetes.provenance import left_behind, origins
from flame_backend.backends.kubernetes.refusals import TOKEN_FOLDER, TOKEN_VOLUME
from flame_backend.errors import ManifestError
from tests.runner_manifests import IDENTITY, PARENT, env, made, runner


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


def test_words_of_the_user_are_no_fields() -> None:
    """A label may be called env, and an attribute of a volume, too."""
    words = {"env": "prod", "volumes": "x"}
    driver = {"driver": "d", "volumeAttributes": words}
    pod = made(
        manifest={
            "metadata": {"labels": words, "annotations": words},
            "spec": {
                "nodeSelector": words,
                "volumes": [{"name": "v", "csi": driver}],
                "containers": [{"volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            },
        }
    )
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "v"]
    assert driver == volume["csi"]
    assert {"pool": "cpu", **words} == pod["spec"]["nodeSelector"]
    for field in ("labels", "annotations"):
        assert words.items() <= pod["metadata"][field].items()


def test_anchors_and_merge_keys_of_yaml_are_understood() -> None:
    """What a merge key brings may be said again beside it."""
    pod = made(
        manifest="""
metadata:
  annotations: &one {x: "1", y: "1"}
  labels: {<<: *one, y: "2"}
spec:
  nodeSelector: {<<: *one, x: "3"}
"""
    )
    assert {"x": "1", "y": "2"}.items() <= pod["metadata"]["labels"].items()
    assert {"pool": "cpu", "x": "3", "y": "1"} == pod["spec"]["nodeSelector"]


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


def test_a_callback_may_hand_back_the_mounts_it_was_given() -> None:
    """Those of tokens stay behind with their volumes; it need not know which."""

    def more(_: dict[str, Any], app: dict[str, Any]) -> dict[str, Any]:
        mounts = [*app["volumeMounts"], {"name": "scratch", "mountPath": "/scratch"}]
        volumes = [{"name": "scratch", "emptyDir": {}}]
        return {"spec": {"volumes": volumes, "containers": [{"volumeMounts": mounts}]}}

    mounts = {mount["name"] for mount in runner(made(manifest=more))["volumeMounts"]}
    assert {"data", "mixed", "scratch", TOKEN_VOLUME} == mounts


def test_what_is_taken_out_may_be_written_anew() -> None:
    """As for kubectl: delete, then another of that name, with nothing of the old."""
    mounts = [
        {"mountPath": "/data", "$patch": "delete"},
        {"mountPath": "/data", "name": "mixed", "readOnly": True},
    ]
    manifest = {"spec": {"containers": [{"volumeMounts": mounts}]}}
    (found,) = [
        mount
        for mount in runner(made(manifest=manifest))["volumeMounts"]
        if mount["mountPath"] == "/data"
    ]
    assert mounts[1] == found
    mounts.reverse()
    with pytest.raises(ManifestError, match="stands twice"):
        made(manifest=manifest)


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
