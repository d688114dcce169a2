"""What ps shows of a pod, what sweep takes, what doctor calls a clash. Pure."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

import kubetls
from flame_backend.cli import listing, main, output
from flame_backend.cli.doctor import selects
from flame_backend.cli.listing import cause_of, described, orphans
from kubetls import testing
from tests.runner_manifests import PARENT, made

NOW = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


NODE = {"nodeName": "node-1"}


def runner_pod(phase: str = "Running", **changes: Any) -> dict[str, Any]:
    """Return a runner's pod as the API gives it."""
    metadata = {
        "name": "thumbs-1",
        "namespace": "shop",
        "uid": "u",
        "creationTimestamp": "2026-01-02T11:00:00Z",
        "labels": {"flame-backend/pool": "thumbs"},
        "ownerReferences": [{"kind": "Pod", "name": "web-1", "uid": "u-1"}],
    }
    metadata |= changes.pop("metadata", {})
    return {
        "metadata": metadata,
        "spec": {} if changes.get("conditions") and phase == "Pending" else NODE,
        "status": {"phase": phase, **changes},
    }


def test_runner_is_described_by_what_its_pod_says() -> None:
    """Pool, phase, age, node, parent; the parent also without an owner reference."""
    found = described(runner_pod(), NOW)
    assert ("thumbs", "Running", 3600, "node-1", "web-1", "u-1", "") == found[3:]
    noted = {"flame-backend/parent": "web-2", "flame-backend/parent-uid": "u-2"}
    orphan = runner_pod(metadata={"ownerReferences": None, "annotations": noted})
    assert ("web-2", "u-2") == described(orphan, NOW)[7:9]
    leaving = {"deletionTimestamp": "2026-01-02T11:59:00Z"}
    assert "Terminating" == described(runner_pod(metadata=leaving), NOW).phase
    ended = described(runner_pod("Failed", metadata=leaving), NOW)
    assert "Failed" == ended.phase


def state(**states: Any) -> dict[str, Any]:
    """Return a status with the state of the runner's container."""
    return {"containerStatuses": [{"name": "flame-runner", "state": states}]}


def condition(kind: str, status: str, reason: str) -> dict[str, Any]:
    """Return a status with a condition."""
    return {"conditions": [{"type": kind, "status": status, "reason": reason}]}


CAUSES: dict[str, tuple[str, dict[str, Any], str]] = {
    "fine": ("Running", state(running={}), ""),
    "done": ("Succeeded", state(terminated={"exitCode": 0}), ""),
    "evicted": (
        "Failed",
        {"reason": "Evicted", "message": "low on memory"},
        "Evicted: low on memory",
    ),
    "unschedulable": (
        "Pending",
        condition("PodScheduled", "False", "Unschedulable"),
        "Unschedulable",
    ),
    "node lost": ("Running", condition("Ready", "False", "x"), "NodeLost: node-1"),
    "pull": (
        "Pending",
        state(waiting={"reason": "ErrImagePull", "message": "no such tag"}),
        "ErrImagePull: no such tag",
    ),
    "memory": (
        "Failed",
        state(terminated={"reason": "OOMKilled", "exitCode": 137}),
        "OOMKilled: exit code 137",
    ),
}


@pytest.mark.parametrize(
    ("phase", "status", "expected"), CAUSES.values(), ids=CAUSES.keys()
)
def test_cause_is_the_one_that_callers_see(
    phase: str, status: dict[str, Any], expected: str
) -> None:
    """Named as in their exceptions, with the cluster's words."""
    assert expected in cause_of(runner_pod(phase, **status))
    assert expected or not cause_of(runner_pod(phase, **status))


STALE = {"annotations": {"flame-backend/boot-timeout": "60"}}
YOUNG = {"annotations": {"flame-backend/boot-timeout": "7200"}}


@pytest.mark.parametrize(
    ("phase", "metadata", "alive", "expected"),
    [
        ("Failed", {}, set(), True),
        ("Succeeded", {}, {"other"}, True),
        ("Failed", {}, {"u-1"}, False),
        ("Running", {}, set(), False),
        ("Pending", {}, set(), False),
        ("Pending", STALE, set(), True),
        ("Pending", STALE, {"u-1"}, False),
        ("Pending", YOUNG, set(), False),
    ],
)
def test_only_runners_that_are_over_and_have_no_parent_are_swept(
    phase: str, metadata: dict[str, Any], alive: set[str], expected: bool
) -> None:
    """A pod that runs ends by itself; a parent may still want an ended one."""
    pod = runner_pod(phase, metadata=metadata)
    assert expected == bool(orphans([pod], alive, NOW))


def test_runner_that_names_no_parent_is_left() -> None:
    """Nobody has said that its parent is gone."""
    nameless = runner_pod("Failed", metadata={"ownerReferences": None})
    assert [] == orphans([nameless], set(), NOW)


def test_parent_of_another_namespace_is_asked_for_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ended runner is its parent's to look at while that lives, wherever it does."""
    parent = {**PARENT, "apiVersion": "v1", "kind": "Pod"}
    with testing.server() as server:
        parent = server.put({**parent, "status": {"phase": "Running"}})
        ended = made(parent, owner_reference=False)
        ended["metadata"]["namespace"] = "runners"
        server.put({**ended, "status": {"phase": "Failed"}})
        monkeypatch.setattr(
            listing,
            "open_session",
            lambda _: kubetls.session(server.config, namespace="runners"),
        )
        assert [] == swept(capsys)
        server.fail_next(403, path="/api/v1/namespaces/apps/pods")
        assert 4 == main(["sweep", "--json"])
        server.delete(parent)
        assert ["pool-abc"] == swept(capsys)


def swept(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run sweep and return the names that it deleted."""
    assert 0 == main(["sweep", "--json"])
    return json.loads(capsys.readouterr().out)["deleted"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (86400 * 3, "3d")],
)
def test_age_is_short(seconds: float, expected: str) -> None:
    """As kubectl writes it."""
    assert expected == output.age(seconds)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (None, False),
        ({}, False),
        ({"app": "web"}, True),
        ({"app": "web", "tier": "x"}, False),
        ({"app": "other"}, False),
    ],
)
def test_selector_takes_pods_with_all_its_labels(
    selector: dict[str, str] | None, expected: bool
) -> None:
    """A Service without a selector takes none."""
    assert expected == selects(selector, {"app": "web", "more": "x"})
