"""What booting pods wait for, and the clock that gives some of them up.

Time is an argument: no test here waits.
"""

from __future__ import annotations

from typing import Any

import pytest

from flame_backend.backends.kubernetes.waiting import BootClock, waiting_for
from flame_backend.errors import (
    BootError,
    BootTimeout,
    ContainerConfigError,
    ImagePullError,
    Unschedulable,
)
from tests.runner_pods import NO_NODE, SANDBOX, SCHEDULED, pod, waits

PULLING = {"reason": "Pulling", "message": 'Pulling image "registry.example/app:1"'}
NODE_COMES = {
    "reason": "TriggeredScaleUp",
    "message": "pod triggered scale-up: [{pool-1 1->2 (max: 9)}]",
}
NO_NODE_COMES = {
    "reason": "NotTriggerScaleUp",
    "message": "pod didn't trigger scale-up: 1 max node group size reached",
}
NOMINATED = {
    "reason": "Nominated",
    "message": "Pod should schedule on: nodeclaim/default-x7z2k",
}
UNSCHEDULABLE = pod(
    None,
    {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": NO_NODE,
    },
    node=None,
)
IMAGE = 'Back-off pulling image "x": ErrImagePull: rpc error: code = NotFound'

Told = tuple[dict[str, Any], ...]
WAITING: dict[str, tuple[dict[str, Any], Told, str, str, float | None, bool]] = {
    "not seen yet": (pod(node=None), (), "Unschedulable", "schedule", None, False),
    "unschedulable": (UNSCHEDULABLE, (), "Unschedulable", "schedule", None, False),
    "node being added": (
        UNSCHEDULABLE, (NODE_COMES,), "Unschedulable", "schedule", None, True,
    ),
    "node being added by Karpenter": (
        UNSCHEDULABLE, (NOMINATED,), "Unschedulable", "schedule", None, True,
    ),
    "no node after all": (
        UNSCHEDULABLE, (NODE_COMES, NO_NODE_COMES),
        "Unschedulable", "schedule", None, False,
    ),
    "node being emptied": (
        pod(node=None, nominatedNodeName="worker"), (),
        "Unschedulable", "schedule", None, True,
    ),
    "node has not begun": (
        pod(None, SCHEDULED), (), "ContainerCreating", "start", None, False,
    ),
    "sandbox being made": (
        pod(waits("ContainerCreating"), SCHEDULED), (),
        "ContainerCreating", "start", None, False,
    ),
    "image being pulled, by event": (
        pod(waits("ContainerCreating")), (PULLING,), "ImagePull", "pull", None, True,
    ),
    "image being pulled, by condition": (
        pod(waits("ContainerCreating"), SANDBOX), (), "ImagePull", "pull", None, True,
    ),
    "image there": (
        pod(waits("ContainerCreating")), (PULLING, {"reason": "Pulled"}),
        "ContainerCreating", "start", None, False,
    ),
    "image there, container being made": (
        pod(waits("ContainerCreating"), SANDBOX), (PULLING, {"reason": "Pulled"}),
        "ContainerCreating", "start", None, False,
    ),
    "volume mounted in the end": (
        pod(waits("ContainerCreating"), SANDBOX),
        ({"reason": "FailedMount"}, {"reason": "Pulled"}),
        "ContainerCreating", "start", None, False,
    ),
    "volume not mounted": (
        pod(waits("ContainerCreating")),
        ({"reason": "FailedMount", "message": 'secret "s" not found'},),
        "VolumeMount", "start", None, False,
    ),
    "no network": (
        pod(waits("ContainerCreating")), ({"reason": "FailedCreatePodSandBox"},),
        "PodSandbox", "start", None, False,
    ),
    "pull failed": (
        pod(waits("ErrImagePull", "not found"), SANDBOX), (),
        "ImagePull", "pull", 30.0, False,
    ),
    "pull backs off": (
        pod(waits("ImagePullBackOff", IMAGE)), (), "ImagePull", "pull", 30.0, False,
    ),
    "image must not be pulled": (
        pod(waits("ErrImageNeverPull")), (), "ErrImageNeverPull", "pull", 0.0, False,
    ),
    "no name of an image": (
        pod(waits("InvalidImageName")), (), "InvalidImageName", "pull", 0.0, False,
    ),
    "no such ConfigMap": (
        pod(waits("CreateContainerConfigError", 'configmap "x" not found')), (),
        "ConfigError", "start", 5.0, False,
    ),
    "bad command": (
        pod(waits("RunContainerError")), (), "ConfigError", "start", 5.0, False,
    ),
    "init container runs": (
        pod(waits("PodInitializing"), SANDBOX, init={"state": {"running": {}}}), (),
        "InitContainer", "init", None, False,
    ),
    "init container's image": (
        pod(waits("PodInitializing"), init={"state": waits("ImagePullBackOff")}), (),
        "ImagePull", "pull", 30.0, False,
    ),
    "sidecar of the init kind crashes": (
        pod(
            waits("PodInitializing"), SANDBOX,
            init={"state": waits("CrashLoopBackOff", "back-off 10s restarting")},
        ), (),
        "InitContainer", "init", None, False,
    ),
    "sidecar of the init kind runs": (
        pod({"running": {}}, init={"state": {"running": {}}, "started": True}), (),
        "NotConnected", "connect", None, False,
    ),
    "runs": (pod({"running": {}}), (PULLING,), "NotConnected", "connect", None, False),
}  # fmt: skip


@pytest.mark.parametrize("case", WAITING)
def test_waiting_pod_says_for_what(case: str) -> None:
    """Name and phase, how long it may last, and whether the clock stands still."""
    given, events, name, phase, patience, still = WAITING[case]
    found = waiting_for(given, events)
    assert (name, phase) == (found.cause.name, found.cause.phase)
    assert (patience, still) == (found.patience, found.still)


def test_unschedulable_tells_the_schedulers_and_the_autoscalers_words() -> None:
    """Both are what an operator needs to see."""
    words = waiting_for(UNSCHEDULABLE, (NO_NODE_COMES,)).cause.words
    assert "2 Insufficient cpu" in words
    assert "max node group size reached" in words


# ---------------------------------------------------------------------- the clock

BOOT, SCALE_UP = 60.0, 300.0
RUNS = waiting_for(pod({"running": {}}))
PULL = waiting_for(pod(waits("ContainerCreating"), SANDBOX))
FAILED = waiting_for(pod(waits("ErrImagePull", "not found")))
BACKOFF = waiting_for(pod(waits("ImagePullBackOff", IMAGE)))
CONFIG = waiting_for(pod(waits("CreateContainerConfigError", "no configmap")))
NEVER = waiting_for(pod(waits("ErrImageNeverPull")))
STUCK = waiting_for(UNSCHEDULABLE)
ADDING = waiting_for(UNSCHEDULABLE, (NODE_COMES,))


def given_up(seen: list[tuple[float, Any]], until: float = 1000.0) -> float | None:
    """Return when a clock that is looked at as it asks for gives a boot up."""
    clock = BootClock(0.0, BOOT, SCALE_UP)
    now = 0.0
    for moment, state in [*seen, (until, None)]:
        while (look := clock.next_look(now)) < moment:
            now = look
            if clock.verdict(now) is not None:
                return now
            # The thread that looks sleeps a little at the least.
            now = max(now, look) + 0.001
        now = moment
        if state is not None:
            clock.observe(state, now)
            if clock.verdict(now) is not None:
                return now
    return None


CLOCKS: dict[str, tuple[float, list[tuple[float, Any]]]] = {
    "nothing heard": (60, []),
    "runs and says nothing": (60, [(2, RUNS)]),
    "image must not be pulled": (1, [(1, NEVER)]),
    "image fails, 30 s": (31, [(1, FAILED), (11, BACKOFF)]),
    "third back-off": (
        16,
        [
            *((1, FAILED), (3, BACKOFF), (6, FAILED)),
            *((8, BACKOFF), (12, FAILED), (16, BACKOFF)),
        ],
    ),
    "one back-off seen again and again": (
        31,
        [(1, BACKOFF), (2, BACKOFF), (3, BACKOFF), (4, BACKOFF)],
    ),
    "image fails, then comes": (60, [(1, FAILED), (20, RUNS)]),
    "image fails, comes, fails": (55, [(1, FAILED), (20, RUNS), (25, FAILED)]),
    "bad config, 5 s": (7, [(2, CONFIG)]),
    "config comes late": (60, [(2, CONFIG), (6, RUNS)]),
    "unschedulable waits": (60, [(1, STUCK)]),
    "node added in 100 s": (160, [(10, ADDING), (110, RUNS)]),
    "image pulled in 40 s": (100, [(10, PULL), (50, RUNS)]),
    "node and image": (140, [(10, ADDING), (40, PULL), (90, RUNS)]),
    "node never comes": (360, [(0, ADDING)]),
    "autoscaler gives up": (110, [(10, ADDING), (60, STUCK)]),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_boot_is_given_up_at_its_time(case: str) -> None:
    """Early for what is hopeless; standing still for nodes and images, in bounds."""
    expected, seen = CLOCKS[case]
    moment = given_up(seen)
    assert moment is not None
    assert expected == pytest.approx(moment, abs=0.01)


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        (None, BootTimeout, "nothing was heard of its pod"),
        (RUNS, BootTimeout, "has not connected"),
        (STUCK, Unschedulable, "2 Insufficient cpu"),
        (PULL, BootTimeout, "being pulled"),
        (FAILED, ImagePullError, "not found"),
        (CONFIG, ContainerConfigError, "no configmap"),
    ],
)
def test_error_of_a_given_up_boot_says_what_it_waited_for(
    state: Any, kind: type[BootError], words: str
) -> None:
    """A class to catch and the words to search for; the limit is named."""
    clock = BootClock(0.0, BOOT, SCALE_UP)
    if state is not None:
        clock.observe(state, 0.0)
    cause = clock.verdict(1000.0)
    assert cause is not None
    error = cause.boot_error("p-1")
    assert kind is type(error)
    assert words in error.reason


def test_standing_still_is_told() -> None:
    """The error says that the boot had more than its time, and why."""
    clock = BootClock(0.0, BOOT, SCALE_UP)
    clock.observe(ADDING, 10.0)
    assert clock.verdict(200.0) is None
    clock.observe(STUCK, 200.0)
    cause = clock.verdict(260.0)
    assert cause is not None
    assert "not ready in 60 s and 190 s for a node or an image" in cause.words
