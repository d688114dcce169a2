"""How long boots wait, with the real events and statuses of those who delay them.

The autoscaler's, the scheduler's and the kubelet's parts are played on a real API
server; what is posted there is what the monitor reads.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from flame_backend import BootTimeout, Unschedulable
from flame_backend.backends.kubernetes import lifecycle
from tests.integration.stage import Play, Stage, staged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.control_plane

BOOT, SCALE_UP = 3.0, 5.0
LATE = 30.0
"""A limit for clocks that are to go on before it, also on a busy machine."""

EARLY = 0.1
"""Clocks of this process and of the pool's thread begin at different moments."""

NO_NODE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
}
SCHEDULED = {"type": "PodScheduled", "status": "True"}
SANDBOX = {"type": "PodReadyToStartContainers", "status": "True"}
SCALE = "pod triggered scale-up: [{gpu-pool 0->1 (max: 4)}]"
AUTOSCALER = "cluster-autoscaler"


@pytest.fixture
def stage(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    monkeypatch.setattr(lifecycle, "EVENTS_SECONDS", 0.3)
    yield from staged(control_plane, tmp_path, monkeypatch)


def play(stage: Stage, scale_up: float = SCALE_UP, boot: float = BOOT) -> Play:
    """Have a pool boot a runner that finds no node; its clock runs from now."""
    found = Play(stage, boot_timeout=boot, scale_up_timeout=scale_up)
    stage.status(found.runner()["metadata"]["name"], conditions=[NO_NODE])
    return found


def test_boot_that_finds_no_node_has_its_time_and_no_more(stage: Stage) -> None:
    """Nobody adds a node: boot_timeout it is."""
    began = time.monotonic()
    with play(stage, LATE) as pool:
        error = pool.error()
        took = time.monotonic() - began
    assert isinstance(error, Unschedulable)
    assert BOOT - EARLY < took < BOOT + SCALE_UP
    assert "not ready in 3 s: Unschedulable: 0/3 nodes are available" in error.reason


@pytest.mark.parametrize(
    ("reason", "message", "by"),
    [
        ("TriggeredScaleUp", SCALE, AUTOSCALER),
        ("Nominated", "Pod should schedule on: nodeclaim/gpu-x2b4f", "karpenter"),
    ],
)
def test_clock_stands_still_while_a_node_is_added(
    stage: Stage, reason: str, message: str, by: str
) -> None:
    """For scale_up_timeout at the most; the error has the autoscaler's words."""
    began = time.monotonic()
    with play(stage) as pool:
        stage.event(pool.runner(), reason, message, by)
        error = pool.error()
        took = time.monotonic() - began
    assert isinstance(error, Unschedulable)
    assert took > BOOT + SCALE_UP - EARLY
    assert "5 s for a node or an image" in error.reason
    assert message in error.reason


def test_clock_goes_on_when_the_autoscaler_gives_up(stage: Stage) -> None:
    """The last of its events counts, and what has passed meanwhile is not lost."""
    began = time.monotonic()
    with play(stage, LATE) as pool:
        pod = pool.runner()
        stage.event(pod, "TriggeredScaleUp", SCALE, AUTOSCALER)
        stage.until(lambda: any(SCALE in words for _, words in pool.phases()))
        time.sleep(2)
        words = "pod didn't trigger scale-up: 1 max node group size reached"
        stage.event(pod, "NotTriggerScaleUp", words, AUTOSCALER)
        error = pool.error()
        took = time.monotonic() - began
    assert BOOT + 2 - EARLY < took < BOOT + 2 + SCALE_UP
    assert words in error.reason


def test_node_that_the_scheduler_has_freed_is_waited_for(stage: Stage) -> None:
    """Preempted pods are ending there: nominatedNodeName says so, without events."""
    began = time.monotonic()
    with play(stage) as pool:
        stage.status(pool.runner()["metadata"]["name"], nominatedNodeName="n1")
        error = pool.error()
        took = time.monotonic() - began
    assert isinstance(error, Unschedulable)
    assert took > BOOT + SCALE_UP - EARLY


@pytest.mark.parametrize("told", ["event", "condition"])
def test_clock_stands_still_while_the_image_is_pulled(stage: Stage, told: str) -> None:
    """By the kubelet's event, or its condition where events may not be read."""
    began = time.monotonic()
    boot = BOOT + 1
    with play(stage, LATE, boot) as pool:
        pod = pool.runner()
        name = pod["metadata"]["name"]
        time.sleep(1.5)
        stage.bind(name, "n1")
        conditions = [SCHEDULED] if told == "event" else [SCHEDULED, SANDBOX]
        stage.status(name, conditions=conditions)
        if told == "event":
            stage.event(pod, "Pulling", 'Pulling image "big:1"', "kubelet")
        stage.until(lambda: "pull" in [phase for phase, _ in pool.phases()])
        time.sleep(boot + 0.5)
        assert [] == pool.errors()
        # It is there: what is left of boot_timeout begins to run.
        running = time.monotonic()
        stage.container(name, running={"startedAt": "2026-03-01T10:00:00Z"})
        error = pool.error()
        left = time.monotonic() - running
        took = time.monotonic() - began
    assert isinstance(error, BootTimeout)
    assert error.phase == "connect"
    # Some of it had passed before the image was pulled.
    assert left < boot
    assert took > 2 * boot
    assert "NotConnected: " in error.reason


def test_node_and_image_stand_still_together_up_to_the_limit(stage: Stage) -> None:
    """One limit for both: a node that takes most of it leaves little to the image."""
    began = time.monotonic()
    with play(stage) as pool:
        pod = pool.runner()
        name = pod["metadata"]["name"]
        stage.event(pod, "TriggeredScaleUp", SCALE, AUTOSCALER)
        stage.until(lambda: any(SCALE in words for _, words in pool.phases()))
        time.sleep(3)
        stage.bind(name, "n1")
        stage.status(name, conditions=[SCHEDULED, SANDBOX])
        error = pool.error()
        took = time.monotonic() - began
    assert isinstance(error, BootTimeout)
    assert error.phase == "pull"
    assert BOOT + SCALE_UP - EARLY < took < BOOT + SCALE_UP + 5
