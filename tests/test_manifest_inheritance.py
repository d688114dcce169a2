"""What a runner takes over from its parent, and the restricted profile."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from flame_backend.backends.kubernetes import shapes
from flame_backend.backends.kubernetes.refusals import TOKEN_VOLUME
from flame_backend.errors import ManifestError
from tests.runner_manifests import PARENT, env, made, runner


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


def test_devices_that_nothing_claims_stay_behind() -> None:
    """A runner with resources of its own holds no GPU that it does not use."""
    parent = copy.deepcopy(PARENT)
    spec = parent["spec"]
    names = ("gpu", "nic")
    spec["resourceClaims"] = [
        {"name": name, "resourceClaimTemplateName": name} for name in names
    ]
    claims = [{"name": name} for name in names]
    spec["containers"][0]["resources"] = {"claims": claims}
    assert spec["resourceClaims"] == made(parent)["spec"]["resourceClaims"]
    some = made(parent, resources={"claims": claims[:1]})["spec"]
    assert spec["resourceClaims"][:1] == some["resourceClaims"]
    assert "resourceClaims" not in made(parent, resources={})["spec"]
    for wrong in ("2", {"claims": "gpu"}):
        with pytest.raises(ManifestError, match="resources"):
            made(parent, resources=wrong)


@pytest.mark.parametrize("nameless", [{}, {"name": ""}])
def test_pull_secret_without_a_name_stays_behind(nameless: dict[str, Any]) -> None:
    """Charts write them; nothing is merged with one, and a policy would refuse it."""
    parent = copy.deepcopy(PARENT)
    parent["spec"]["imagePullSecrets"] = [nameless, {"name": "a"}]
    manifest = {"spec": {"imagePullSecrets": [{"name": "b"}]}}
    shapes.check_shape(parent, shapes.PARENT, "file")
    for options, names in (({}, ["a"]), ({"manifest": manifest}, ["a", "b"])):
        found = made(parent, **options)["spec"]["imagePullSecrets"]
        assert names == [entry["name"] for entry in found]


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


@pytest.mark.parametrize("profile", [None, {"type": "Unconfined"}], ids=str)
def test_restricted_gives_the_pod_a_seccomp_profile(profile: Any) -> None:
    """Also where the manifest takes ours out; a profile of the node's is kept."""
    spec = {"securityContext": {"seccompProfile": profile}}
    pod = made(manifest={"spec": spec}, hardening="restricted")
    assert {"type": "RuntimeDefault"} == pod["spec"]["securityContext"][
        "seccompProfile"
    ]
    spec = {"securityContext": {"seccompProfile": {"type": "Localhost"}}}
    pod = made(manifest={"spec": spec}, hardening="restricted")
    assert {"type": "Localhost"} == pod["spec"]["securityContext"]["seccompProfile"]


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
    "SELinux role": (
        {"containers": [{"securityContext": {"seLinuxOptions": {"role": "r"}}}]},
        r"seLinuxOptions\.role",
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
