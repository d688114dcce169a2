"""flame-backend against a real API server."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import kubetls
from flame_backend.backends.kubernetes.access import Access, access_objects
from flame_backend.backends.kubernetes.manifest import RunnerOptions, runner_pod
from flame_backend.cli import main
from tests.property import pods
from tests.property.pods import IDENTITY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster.control_plane import ControlPlane

from tests.integration.apiserver import await_role, make_namespace, session_of

pytestmark = pytest.mark.control_plane

PLAIN: dict[str, Any] = {
    "metadata": {"name": "web", "uid": pods.UID},
    "spec": {"containers": [{"name": "app", "image": "app:1"}]},
}


@pytest.fixture(scope="module")
def admin(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kubetls.Session]:
    """Lend a session that may do everything, in a namespace of its own."""
    make_namespace(control_plane, "commands")
    folder = tmp_path_factory.mktemp("admin")
    with session_of(control_plane, folder, "commands") as session:
        yield session


@pytest.fixture
def config(admin: kubetls.Session, control_plane: ControlPlane, tmp_path: Path) -> Path:
    """Lend a file that leads commands to that namespace, with all rights."""
    file = tmp_path / "kubeconfig"
    file.write_text(control_plane.kubeconfig(namespace=admin.namespace))
    return file


def test_doctor_finds_what_is_missing(
    admin: kubetls.Session,
    control_plane: ControlPlane,
    tmp_path: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All is well for the account that init served, and not for another."""
    made = access_objects(Access(account="web", namespace=admin.namespace))
    applied = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
    control_plane.kubectl("apply", "-f", "-", stdin=applied)
    with session_of(control_plane, tmp_path, admin.namespace, "web") as app:
        await_role(app, admin.namespace)
    parent = tmp_path / "pod.yaml"
    parent.write_text(yaml.safe_dump(PLAIN | {"kind": "Pod"}))
    words = ["doctor", "--json", "--kubeconfig", str(config), "--parent", str(parent)]
    words += ["--service-account", "web"]
    assert 0 == main([*words, "--as-account", "web"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert {"ok", "warn", "skip"} == {check["verdict"] for check in checks.values()}
    assert ("ok", "ok", "ok") == tuple(
        checks[name]["verdict"] for name in ("may watch pods", "issuer", "dry run")
    )
    assert 1 == main([*words, "--as-account", "default"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert "fail" == checks["may create pods"]["verdict"]
    assert "init" in checks["may create pods"]["remedy"]
    assert "warn" == checks["may list events"]["verdict"]


DISCOVERY = "system:service-account-issuer-discovery"


def test_doctor_asks_whether_the_account_may_read_the_keys(
    admin: kubetls.Session,
    config: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the cluster's own binding was taken away; whoever asks may read them."""
    path = kubetls.path(
        "rbac.authorization.k8s.io/v1", "clusterrolebindings", DISCOVERY
    )
    words = ["doctor", "--json", "--kubeconfig", str(config), "--as-account", "web"]

    def judged(verdict: str) -> dict[str, str]:
        ends = time.monotonic() + 20  # the authorizer reads its roles a moment later
        while True:
            main(words)
            checks = json.loads(capsys.readouterr().out)
            (found,) = (check for check in checks if check["name"] == "issuer")
            if found["verdict"] == verdict:
                return found
            assert time.monotonic() < ends, found
            time.sleep(0.2)

    subjects = admin.get(path)["subjects"]
    try:
        admin.patch(path, {"subjects": None})
        found = judged("fail")
    finally:
        admin.patch(path, {"subjects": subjects})
    judged("ok")
    assert "web may not get /.well-known/openid-configuration" == found["detail"]
    assert DISCOVERY in found["remedy"]


def test_doctor_looks_at_the_runners_namespace_too(
    admin: kubetls.Session,
    control_plane: ControlPlane,
    tmp_path: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rights there and at home, Leases, and the pod as it would be there."""
    away = f"{admin.namespace}-away"
    make_namespace(control_plane, away)
    parent = tmp_path / "pod.yaml"
    parent.write_text(yaml.safe_dump(PLAIN | {"kind": "Pod"}))
    words = ["doctor", "--json", "--kubeconfig", str(config), "--parent", str(parent)]
    words += ["--as-account", "web", "--runner-namespace", away]
    words += ["--service-account", "runner", "--inherit", "image"]
    assert 1 == main(words)
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    command = checks["may create leases"]["remedy"].partition(" | ")[0]
    assert f"--runner-namespace {away} --runner-account runner" in command
    assert 0 == main([*command.split()[1:], "--json"])
    control_plane.kubectl("apply", "-f", "-", stdin=capsys.readouterr().out)
    with session_of(control_plane, tmp_path, admin.namespace, "web") as app:
        await_role(app, away)
    assert 0 == main(words)
    found = json.loads(capsys.readouterr().out)
    checks = {(check["name"], check["detail"]): check["verdict"] for check in found}
    for name, namespace in (
        ("may create pods", away),
        ("may patch leases", away),
        ("may list pods", admin.namespace),
    ):
        assert "ok" == checks[name, f"in namespace {namespace}"]
    assert ("dry run", "the API server takes the runner's pod") in checks
    # The dry run took place there: the account is of that namespace only.
    control_plane.kubectl("delete", "serviceaccount", "runner", "-n", away)
    assert 1 == main(words)
    assert "serviceaccount" in capsys.readouterr().out


def test_doctor_tries_a_runner_from_the_apps_pod_alone(
    admin: kubetls.Session,
    tmp_path: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Elsewhere no runner could dial in: it is skipped, with the command to use."""
    parent = tmp_path / "pod.yaml"
    parent.write_text(yaml.safe_dump(PLAIN | {"kind": "Pod"}))
    words = ["doctor", "--kubeconfig", str(config), "--parent", str(parent), "--runner"]
    main(words)
    told = capsys.readouterr().out
    assert "skip  runner: a runner is tried from the app's pod" in told
    assert "kubectl exec deploy/NAME -- flame-backend doctor --runner" in told
    path = kubetls.path("v1", "pods", namespace=admin.namespace)
    assert [] == list(admin.list(path, labels="flame-backend/pool=doctor"))


def test_doctor_sees_a_service_that_would_take_runners(
    admin: kubetls.Session,
    tmp_path: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By its selector and the runner's labels."""
    parent = tmp_path / "pod.yaml"
    parent.write_text(yaml.safe_dump(PLAIN | {"kind": "Pod"}))
    change = tmp_path / "change.yaml"
    change.write_text("metadata: {labels: {tier: batch}}")
    path = kubetls.path("v1", "services", namespace=admin.namespace)
    spec = {"selector": {"tier": "batch"}, "ports": [{"port": 80}]}
    admin.post(path, {"metadata": {"name": "batch"}, "spec": spec})
    words = ["doctor", "--kubeconfig", str(config), "--parent", str(parent)]
    assert 0 == main(words)
    assert 1 == main([*words, "--manifest", str(change)])
    assert "Service batch would send runners" in capsys.readouterr().out


def test_ps_and_sweep_see_runners(
    admin: kubetls.Session,
    control_plane: ControlPlane,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ended ones of dead parents are swept, and only those."""
    make_namespace(control_plane, "swept")
    path = kubetls.path("v1", "pods", namespace="swept")
    for name, phase in (("dead-1", "Failed"), ("dead-2", "Pending")):
        pod = runner_pod(PLAIN, RunnerOptions(owner_reference=False), IDENTITY)
        pod["metadata"]["name"] = name
        admin.post(path, pod)
        status = {"phase": phase, "reason": "Evicted", "message": "low on memory"}
        status = status if phase == "Failed" else {"phase": phase}
        admin.patch(f"{path}/{name}/status", {"status": status})
    file = tmp_path / "kubeconfig"
    file.write_text(control_plane.kubeconfig(namespace="swept"))
    where = ["--kubeconfig", str(file)]
    assert 0 == main(["ps", *where])
    shown = capsys.readouterr().out
    assert ["NAME", "POOL", "PHASE"] == shown.split()[:3]
    assert "Evicted: low on memory" in shown
    assert 0 == main(["sweep", "--dry-run", *where])
    assert "would delete dead-1 (Failed, of web)\n" == capsys.readouterr().out
    assert 0 == main(["sweep", "--json", *where])
    assert {"deleted": ["dead-1"]} == json.loads(capsys.readouterr().out)
    assert ["dead-2"] == [pod["metadata"]["name"] for pod in admin.list(path)]
    assert 0 == main(["sweep", *where])
    assert "nothing is left over\n" == capsys.readouterr().out
