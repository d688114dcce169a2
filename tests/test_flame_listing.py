"""What ps shows of a pod, what sweep takes, what doctor calls a clash. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from flame_backend.cli import output
from flame_backend.cli.doctor import selects
from flame_backend.cli.listing import cause_of, described, is_left_over

NOW = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


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
        "spec": {"nodeName": "node-1"},
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


def waiting(field: str, **state: Any) -> dict[str, Any]:
    """Return a status with one container's state."""
    return {field: [{"name": "c", "state": state}]}


CAUSES: dict[str, tuple[dict[str, Any], str]] = {
    "fine": (waiting("containerStatuses", running={}), ""),
    "evicted": ({"reason": "Evicted", "message": "low"}, "Evicted: low"),
    "unschedulable": (
        {
            "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            ]
        },
        "Unschedulable",
    ),
    "preempted": (
        {
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "DisruptionTarget", "status": "True", "reason": "Preemption"},
            ]
        },
        "Preemption",
    ),
    "pull": (
        waiting(
            "containerStatuses", waiting={"reason": "ErrImagePull", "message": "m"}
        ),
        "ErrImagePull: m",
    ),
    "init": (
        waiting("initContainerStatuses", terminated={"reason": "Error", "exitCode": 3}),
        "Error (exit code 3)",
    ),
    "done": (
        waiting("containerStatuses", terminated={"reason": "Completed", "exitCode": 0}),
        "",
    ),
    "memory": (
        waiting(
            "containerStatuses", terminated={"reason": "OOMKilled", "exitCode": 137}
        ),
        "OOMKilled (exit code 137)",
    ),
}


@pytest.mark.parametrize(("status", "expected"), CAUSES.values(), ids=CAUSES.keys())
def test_cause_is_in_the_clusters_words(status: dict[str, Any], expected: str) -> None:
    """What somebody would search for."""
    assert expected == cause_of(status)


@pytest.mark.parametrize(
    ("phase", "alive", "expected"),
    [
        ("Failed", set(), True),
        ("Succeeded", {"other"}, True),
        ("Failed", {"u-1"}, False),
        ("Running", set(), False),
        ("Pending", set(), False),
    ],
)
def test_only_ended_runners_of_dead_parents_are_left_over(
    phase: str, alive: set[str], expected: bool
) -> None:
    """A pod that runs ends by itself; a parent may still want an ended one."""
    assert expected == is_left_over(described(runner_pod(phase), NOW), alive)


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
