"""Runners in a namespace of their own: what the right to create pods opens is empty."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from flame_backend import ConfigurationError
from flame_backend.backends.kubernetes.access import Access, access_objects
from flame_backend.backends.kubernetes.lease import API, LEASE_SECONDS, Lease
from tests.integration.apiserver import make_namespace
from tests.integration.programs import HEAD, await_told, finish, told
from tests.integration.space import Space
from tests.integration.stage import Play, Stage, staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cluster.control_plane import ControlPlane


@pytest.fixture
def stage(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    yield from staged(control_plane, tmp_path, monkeypatch)


@pytest.fixture
def elsewhere(stage: Stage) -> Iterator[str]:
    """Lend a second namespace."""
    name = f"{stage.name}-runners"
    make_namespace(stage.plane, name)
    yield name
    stage.plane.kubectl("delete", "namespace", name, "--wait=false", "--now")


def leases(stage: Stage, namespace: str) -> dict[str, dict[str, Any]]:
    """Return the leases of a namespace by their holders."""
    path = kubetls.path(API, "leases", namespace=namespace)
    found = stage.session.list(path, labels="flame-backend/instance")
    return {item["spec"]["holderIdentity"]: item for item in found}


@pytest.mark.control_plane
def test_lease_owns_the_runners_of_another_namespace(
    stage: Stage, elsewhere: str
) -> None:
    """It is there with the pool and gone with it; nothing is made at home."""
    options = {"namespace": elsewhere, "service_account": "web"}
    path = kubetls.path("v1", "pods", namespace=elsewhere)
    with Play(stage, backend=options):
        (pod,) = stage.until(lambda: list(stage.session.list(path)))
        ((holder, lease),) = leases(stage, elsewhere).items()
        assert holder.startswith(f"{stage.name}/app/")
        (owner,) = pod["metadata"]["ownerReferences"]
        assert ("Lease", lease["metadata"]["uid"], True) == (
            owner["kind"],
            owner["uid"],
            owner["controller"],
        )
        assert "web" == pod["spec"]["serviceAccountName"]
        assert [] == stage.runners()
    assert {} == leases(stage, elsewhere)
    assert [] == list(stage.session.list(path))


@pytest.mark.control_plane
def test_runners_elsewhere_need_an_account_of_that_namespace(
    stage: Stage, elsewhere: str
) -> None:
    """The app's own account is not there; nothing is made before that is said."""
    with pytest.raises(ConfigurationError, match="service_account"):
        Play(stage, backend={"namespace": elsewhere})
    assert {} == leases(stage, elsewhere)


@pytest.mark.control_plane
def test_leases_of_parents_that_are_no_more_are_deleted(
    stage: Stage, elsewhere: str
) -> None:
    """Known by their pod where it can be looked up, else by a long silence."""
    uid = stage.session.get(f"{stage.path}/app")["metadata"]["uid"]
    me = {"namespace": stage.name, "name": "app", "uid": uid}
    parents = {
        "mine": me,
        "sibling's": me,
        "gone": me | {"name": "gone"},
        "made again": me | {"uid": "another"},
        "of another app": me | {"namespace": "other"},
    }
    made = {}
    for number, (case, parent) in enumerate(parents.items()):
        made[case] = Lease(stage.session, elsewhere, parent, f"i{number}")
        made[case].acquire()
    names = {made[case]._name: case for case in made}

    def left() -> set[str]:
        path = kubetls.path(API, "leases", namespace=elsewhere)
        return {names[item["metadata"]["name"]] for item in stage.session.list(path)}

    now = dt.datetime.now(dt.UTC)
    made["mine"].sweep(now)
    assert {"mine", "sibling's", "of another app"} == left()
    later = now + dt.timedelta(seconds=LEASE_SECONDS + 60)
    made["mine"].sweep(later)
    assert {"mine", "sibling's"} == left()
    path = kubetls.path(API, "leases", made["mine"]._name, namespace=elsewhere)
    before = stage.session.get(path)["spec"]["renewTime"]
    made["mine"].renew()
    assert stage.session.get(path)["spec"]["renewTime"] > before
    made["mine"].release()
    made["mine"].release()
    assert {"sibling's"} == left()


PROGRAM = """
backend = KubernetesBackend(namespace=NAMESPACE, service_account='runner')
with Pool('away', max=2, backend=backend) as pool:
    tell('sum', lambda: sum(pool.map(work, [1, 1])))
    say('busy')
    if HANGS:
        pool.call(work, 600)
"""


@pytest.mark.cluster
def test_app_with_the_printed_rights_has_its_runners_elsewhere(
    space: Space, namespace: Callable[[], str]
) -> None:
    """All that init prints; what a killed parent leaves goes with the next start."""
    if space.cluster.only_namespace is not None:
        pytest.skip("a second namespace is needed")
    away = Space(space.cluster, namespace())
    access = Access(
        account="least",
        namespace=space.name,
        runner_namespace=away.name,
        runner_account="runner",
    )
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    account["metadata"] = {"name": "least"}  # type: ignore[assignment]
    space.apply(account)
    for item in access_objects(access):
        target = away if item["metadata"]["namespace"] == away.name else space
        target.apply(item)
    source = HEAD + PROGRAM.replace("NAMESPACE", repr(away.name))
    space.start(source.replace("HANGS", "True"), account_name="least")
    await_told(space, "busy")
    assert [] == space.runners()
    assert 2 == len(away.runners())
    # Killed: its runners end by themselves, as nothing else tells them to.
    space.kubectl("delete", "pod", "app", "--grace-period=0", "--force")
    deadline = time.monotonic() + 60
    while "Running" in [pod["status"]["phase"] for pod in away.runners()]:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    space.start(source.replace("HANGS", "False"), "next", account_name="least")
    finish(space, 90, "next")
    assert 2 == told(space, "next")["sum"]["value"]
    away.await_no_runners(60)
    assert "" == away.kubectl("get", "leases", "-o", "name").strip()
