"""Runner pods and what deploy/ holds, judged by a real API server."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

import kubetls
from flame_backend.backends.kubernetes.access import Access, access_objects
from flame_backend.backends.kubernetes.manifest import RunnerOptions, runner_pod
from flame_backend.backends.kubernetes.policy import create_rules
from tests.integration.apiserver import await_role, make_namespace, session_of
from tests.property import pods
from tests.property.pods import IDENTITY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.control_plane
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
STRICT = {"fieldValidation": "Strict"}
SAMPLES = 40


@pytest.fixture(scope="module")
def admin(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kubetls.Session]:
    """Lend a session that may do everything, in a namespace of its own."""
    make_namespace(control_plane, "accepted")
    folder = tmp_path_factory.mktemp("admin")
    with session_of(control_plane, folder, "accepted") as session:
        yield session


@pytest.fixture(scope="module")
def restricted(control_plane: ControlPlane) -> str:
    """Lend a namespace that enforces the restricted profile."""
    name = "restricted"
    profile = "pod-security.kubernetes.io/enforce=restricted"
    make_namespace(control_plane, name, profile)
    return name


def post(session: kubetls.Session, pod: dict[str, Any], namespace: str) -> None:
    """Have the server judge a pod, strictly, without making it."""
    path = kubetls.path("v1", "pods", namespace=namespace)
    session.post(path, pod, STRICT, dry_run=True)


sampled = settings(
    max_examples=SAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@sampled
@given(parent=pods.parents(), options=pods.options())
def test_every_generated_runner_is_accepted(
    admin: kubetls.Session, parent: dict[str, Any], options: RunnerOptions
) -> None:
    """With strict validation of fields, whatever parent and manifest say."""
    options = pods.with_sidecars(parent, options)
    post(admin, runner_pod(parent, options, IDENTITY), admin.namespace)


@sampled
@given(parent=pods.parents(), options=pods.options())
def test_restricted_runner_fits_the_profile(
    admin: kubetls.Session,
    restricted: str,
    parent: dict[str, Any],
    options: RunnerOptions,
) -> None:
    """hardening="restricted" is what PodSecurity enforces under that name."""
    chosen = pods.with_sidecars(parent, replace(options, hardening="restricted"))
    post(admin, runner_pod(parent, chosen, IDENTITY), restricted)


def test_sidecar_is_accepted(admin: kubetls.Session) -> None:
    """A container of the parent's, as the kind of init container that stays."""
    parent: dict[str, Any] = {
        "metadata": {"name": "web", "uid": pods.UID},
        "spec": {
            "containers": [
                {"name": "app", "image": "app:1"},
                {"name": "proxy", "image": "proxy:1", "args": ["--port=1"]},
            ]
        },
    }
    options = RunnerOptions(container="app", sidecars=("proxy",))
    post(admin, runner_pod(parent, options, IDENTITY), admin.namespace)


def test_pull_secret_without_a_name_is_no_fault_of_a_parent(
    admin: kubetls.Session,
) -> None:
    """The server warns of it and drops the name; its runner goes without."""
    parent = {
        "metadata": {"name": "web"},
        "spec": {
            "imagePullSecrets": [{"name": ""}],
            "containers": [{"name": "app", "image": "app:1"}],
        },
    }
    path = kubetls.path("v1", "pods", namespace=admin.namespace)
    stored = admin.post(path, parent, STRICT, dry_run=True)
    assert [{}] == stored["spec"]["imagePullSecrets"]
    manifest = {"spec": {"imagePullSecrets": [{"name": "registry"}]}}
    pod = runner_pod(stored, RunnerOptions(manifest=manifest), IDENTITY)
    assert [{"name": "registry"}] == pod["spec"]["imagePullSecrets"]
    post(admin, pod, admin.namespace)


def test_parents_own_pod_becomes_a_runner(
    admin: kubetls.Session, control_plane: ControlPlane
) -> None:
    """A pod as this API server completes it, and its runner as a parent again."""
    made = admin.post(
        kubetls.path("v1", "pods", namespace=admin.namespace),
        {
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {
                "serviceAccountName": "web",
                "containers": [{"name": "app", "image": "app:1"}],
            },
        },
    )
    # The account's token was mounted by the server's own admission.
    assert made["spec"]["volumes"]
    first = runner_pod(made, RunnerOptions(), IDENTITY)
    assert ["flame-token"] == [volume["name"] for volume in first["spec"]["volumes"]]
    path = kubetls.path("v1", "pods", namespace=admin.namespace)
    stored = admin.post(path, first, STRICT)
    try:
        assert (
            made["metadata"]["uid"] == stored["metadata"]["ownerReferences"][0]["uid"]
        )
        stored["metadata"]["name"] = "another"
        again = runner_pod(stored, RunnerOptions(), IDENTITY)
        post(admin, again | {"metadata": again["metadata"] | {"name": "x"}}, "accepted")
    finally:
        for name in ("web", IDENTITY.name):
            admin.delete(f"{path}/{name}", grace=0)


# ------------------------------------------------------------------ deploy/


def documents(name: str) -> list[dict[str, Any]]:
    """Read one file of deploy/."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


def test_everything_in_deploy_applies(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """Strictly; then the account may post the example's runner, and read no Secret."""
    plane = control_plane
    names = sorted(path.name for path in DEPLOY.glob("*.yaml"))
    names.sort(key=lambda name: name != "namespace.yaml")
    for name in names:
        plane.kubectl("apply", "--validate=strict", "-f", str(DEPLOY / name))
    try:
        with session_of(plane, tmp_path, "words", "words") as app:
            await_role(app, "words")
            parent = copy.deepcopy(documents("deployment.yaml")[0]["spec"]["template"])
            parent["metadata"] |= {"name": "words-1", "uid": pods.UID}
            options = RunnerOptions(service_account="words-runner")
            post(app, runner_pod(parent, options, IDENTITY), "words")
            with pytest.raises(kubetls.Forbidden):
                app.get(kubetls.path("v1", "secrets", namespace="words"))
    finally:
        plane.kubectl("delete", "-f", str(DEPLOY / "admissionpolicy.yaml"))


# ------------------------------------------------------------------ the policy

GUARDED = "guarded"
PLAIN: dict[str, Any] = {
    "metadata": {"name": "web", "uid": pods.UID},
    "spec": {"containers": [{"name": "app", "image": "app:1"}]},
}
ALLOW = {
    "secret": ["env"],
    "claim": ["models"],
    "audience": ["sts.amazonaws.com"],
    "init-container": ["prepare:1"],
}


def runner(**changes: Any) -> dict[str, Any]:
    """Return a runner's pod with fields of its spec changed behind the pool's back."""
    pod = runner_pod(PLAIN, RunnerOptions(service_account="web"), IDENTITY)
    container = pod["spec"]["containers"][0]
    for field, value in changes.items():
        if field == "volume":
            pod["spec"]["volumes"].append({"name": "x", **value})
        elif field == "source":
            projected = {"projected": {"sources": [value]}}
            pod["spec"]["volumes"].append({"name": "x", **projected})
        elif field in {"env", "ports", "securityContext"}:
            container[field] = value
        elif field == "envFrom":
            container[field] = [value]
        elif field == "labels":
            pod["metadata"]["labels"] = value
        else:
            pod["spec"][field] = value
    return pod


def secret_variable(name: str) -> list[dict[str, Any]]:
    """Return a variable from a Secret."""
    source = {"secretKeyRef": {"name": name, "key": "k"}}
    return [{"name": "X", "valueFrom": source}]


INIT = {"name": "prepare", "image": "other:1"}
HIDDEN = {"name": "prepare", "image": "prepare:1", "env": secret_variable("other")}
OTHER_TOKEN = {"serviceAccountToken": {"path": "t", "audience": "kubernetes"}}
CLOUD_TOKEN = {"serviceAccountToken": {"path": "t", "audience": "sts.amazonaws.com"}}
API_TOKEN = {"serviceAccountToken": {"path": "t"}}

FORBIDDEN: dict[str, tuple[str, dict[str, Any]]] = {
    "no label": ("label", {"labels": {}}),
    "account": ("account", {"serviceAccountName": "default"}),
    "API token": ("api-token", {"automountServiceAccountToken": True}),
    "restart": ("restart", {"restartPolicy": "Always"}),
    "node": ("node", {"nodeName": "node-1"}),
    "host network": ("host", {"hostNetwork": True}),
    "host processes": ("host", {"hostPID": True}),
    "host IPC": ("host", {"hostIPC": True}),
    "priority": ("priority", {"priorityClassName": "system-cluster-critical"}),
    "privileged": ("privileged", {"securityContext": {"privileged": True}}),
    "host port": ("host-port", {"ports": [{"containerPort": 1, "hostPort": 1}]}),
    "host path": ("volumes", {"volume": {"hostPath": {"path": "/"}}}),
    "secret": ("volumes", {"volume": {"secret": {"secretName": "other"}}}),
    "claim": ("volumes", {"volume": {"persistentVolumeClaim": {"claimName": "other"}}}),
    "CSI": ("volumes", {"volume": {"csi": {"driver": "secrets-store.csi.k8s.io"}}}),
    "projected secret": ("projected", {"source": {"secret": {"name": "other"}}}),
    "other token": ("projected", {"source": OTHER_TOKEN}),
    "projected API token": ("projected", {"source": API_TOKEN}),
    "secret in env": ("env-secret", {"env": secret_variable("other")}),
    "secret in an init container": ("env-secret", {"initContainers": [HIDDEN]}),
    "secret in envFrom": (
        "env-from-secret",
        {"envFrom": {"secretRef": {"name": "other"}}},
    ),
    "pull secret": ("pull-secret", {"imagePullSecrets": [{"name": "other"}]}),
    "init container": ("init-container", {"initContainers": [INIT]}),
}

ACCEPTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "listed secret": {"volume": {"secret": {"secretName": "env"}}},
    "listed secret, projected": {"source": {"secret": {"name": "env"}}},
    "listed secret in env": {"env": secret_variable("env")},
    "listed secret in envFrom": {"envFrom": {"secretRef": {"name": "env"}}},
    "listed claim": {"volume": {"persistentVolumeClaim": {"claimName": "models"}}},
    "listed init container": {"initContainers": [INIT | {"image": "prepare:1"}]},
    "listed audience": {"source": CLOUD_TOKEN},
    "own port": {"ports": [{"containerPort": 1}]},
    "config map": {"volume": {"configMap": {"name": "c"}}},
    "empty folder": {"volume": {"emptyDir": {}}},
    "own priority": {"priorityClassName": "batch"},
}


@pytest.fixture(scope="module")
def guarded(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kubetls.Session]:
    """Lend a session of an app's account under the policy that `init` prints."""
    plane = control_plane
    make_namespace(plane, GUARDED)
    batch = ("priorityclass", "batch", "--value=1")
    plane.kubectl("create", *batch)
    access = Access(account="web", namespace=GUARDED, policy=True, allow=ALLOW)
    made = {"apiVersion": "v1", "kind": "List", "items": access_objects(access)}
    applied = json.dumps(made)
    plane.kubectl("apply", "--validate=strict", "-f", "-", stdin=applied)
    folder = tmp_path_factory.mktemp("guarded")
    with session_of(plane, folder, GUARDED, "web") as session:
        await_policy(session)
        yield session
    plane.kubectl("delete", "-f", "-", stdin=applied)


def await_policy(session: kubetls.Session, seconds: float = 30) -> None:
    """Wait until the server knows a new policy."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            post(session, runner(restartPolicy="Always"), GUARDED)
        except kubetls.ApiError as error:
            if "restart: " in error.message:
                return
        assert time.monotonic() < deadline, "the policy is not in force"
        time.sleep(0.2)


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_policy_lets_runners_through(
    guarded: kubetls.Session, changes: dict[str, Any]
) -> None:
    """Ours, and those with what the operator listed."""
    post(guarded, runner(**changes), GUARDED)


@pytest.mark.parametrize(("rule", "changes"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_policy_refuses_what_is_no_runner(
    guarded: kubetls.Session, rule: str, changes: dict[str, Any]
) -> None:
    """One pod for each way out, refused by the rule that closes it."""
    with pytest.raises(kubetls.ApiError, match=rf"denied request: {rule}: "):
        post(guarded, runner(**changes), GUARDED)


def test_every_rule_of_the_policy_is_tried() -> None:
    """The table above has a pod for each."""
    rules = {rule.name for rule in create_rules("web", {})}
    assert rules == {rule for rule, _ in FORBIDDEN.values()}


def test_policy_lets_the_account_delete_runners_only(
    guarded: kubetls.Session, admin: kubetls.Session
) -> None:
    """Another pod of the namespace is out of its reach, a runner is not."""
    path = kubetls.path("v1", "pods", namespace=GUARDED)
    other = copy.deepcopy(PLAIN)
    other["metadata"] = {"name": "other"}
    admin.post(path, other)
    admin.post(path, runner())
    try:
        with pytest.raises(kubetls.ApiError, match="denied request: delete: "):
            guarded.delete(f"{path}/other", grace=0)
    finally:
        admin.delete(f"{path}/other", grace=0)
    guarded.delete(f"{path}/{IDENTITY.name}", grace=0)
