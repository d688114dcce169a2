"""What a start deletes of earlier processes of its pod, and what it leaves alone."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from flame_backend.backends.kubernetes.pods import SETTLE_SECONDS, is_settled
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
