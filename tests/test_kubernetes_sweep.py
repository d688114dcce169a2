"""What a start deletes of earlier processes of its pod, and what it leaves alone."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from flame_backend.backends.kubernetes.leftovers import (
    SETTLE_SECONDS,
    is_kept,
    is_left_over,
    is_settled,
)
from tests.runner_pods import ended, pod

FINISHED = dt.datetime(2026, 3, 1, 10, 0, 10, tzinfo=dt.UTC)  # as in tests.runner_pods


@pytest.mark.parametrize(
    ("found", "seconds", "settled"),
    [
        (pod(ended(14)), SETTLE_SECONDS - 1, False),
        (pod(ended(14)), SETTLE_SECONDS, True),
        # Evicted before it had containers, or by a kubelet that says nothing.
        (pod(), 0, True),
        (pod({"terminated": {"exitCode": 1}}), 0, True),
        ({"metadata": {}}, 0, True),
    ],
    ids=["a moment ago", "a while ago", "no container", "no moment", "no status"],
)
def test_pod_that_has_just_ended_is_left_to_its_parent(
    found: dict[str, Any], seconds: float, settled: bool
) -> None:
    """A sibling process may be reading its status and its log."""
    now = FINISHED + dt.timedelta(seconds=seconds)
    assert settled is is_settled(found, now)


MADE = "2026-03-01T10:00:00Z"
KEPT = {
    "creationTimestamp": MADE,
    "annotations": {
        "flame-backend/keep-failed": "300",
        "flame-backend/boot-timeout": "60",
    },
}
EVICTED = {"type": "Ready", "lastTransitionTime": "2026-03-01T10:01:00Z"}


@pytest.mark.parametrize(
    ("found", "until"),
    [
        (pod(ended(1), metadata=KEPT, phase="Failed"), 310),
        (pod(metadata=KEPT, phase="Failed"), 300),
        (pod(None, EVICTED, metadata=KEPT, phase="Failed"), 360),
        # Nobody but its own process knows when it was given up.
        (pod(metadata=KEPT), 360),
    ],
    ids=["its container ended", "nothing is known", "evicted", "still Pending"],
)
def test_pod_that_is_kept_for_a_look_is_left_for_its_time(
    found: dict[str, Any], until: float
) -> None:
    """keep_failed of another process: its annotation says how long."""
    made = dt.datetime.fromisoformat(MADE)
    assert is_kept(found, made + dt.timedelta(seconds=until - 1))
    assert not is_kept(found, made + dt.timedelta(seconds=until))


@pytest.mark.parametrize("value", [None, "", "x", "1e400", "nan"])
def test_annotation_that_is_none_keeps_nothing(value: str | None) -> None:
    """Annotations can be written by whoever may patch pods; none stops a sweep."""
    annotations = {} if value is None else {"flame-backend/keep-failed": value}
    metadata = {"creationTimestamp": MADE, "annotations": annotations}
    found = pod(ended(1), metadata=metadata, phase="Failed")
    assert not is_kept(found, FINISHED)
    assert is_left_over(found, FINISHED)
