"""Nodes that go away under runners, as a real API server tells it.

The runner's process is real and runs here; what the node's controllers write when its
kubelet falls silent, or when somebody deletes the node, is written to its pod. A loss
from first to last, on a cluster with workers to lose, is in test_kind_nodes.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from flame_backend import BootError, RunnerLost
from tests.integration.stage import Agent, Play, Stage, staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.control_plane

TAINTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "DeletionByTaintManager",
    "message": "Taint manager: deleting due to NoExecute taint",
}
COLLECTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "DeletionByPodGC",
    "message": "PodGC: node no longer exists",
}
NOT_READY = {"type": "Ready", "status": "False"}


@pytest.fixture
def stage(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    yield from staged(control_plane, tmp_path, monkeypatch)


def vanish(agent: Agent) -> None:
    """End a runner as the loss of its machine does: all at once, without a word."""
    os.killpg(agent.pid, signal.SIGKILL)


def taint(stage: Stage, name: str) -> None:
    """Mark and delete a pod, as the taint manager does when a node is not ready."""
    stage.status(name, conditions=[TAINTED, NOT_READY])
    with suppress(kubetls.NotFound):  # the pool may have been first
        stage.session.delete(f"{stage.path}/{name}", grace=30)


def collect(stage: Stage, name: str) -> None:
    """Mark, fail and remove a pod, as the collector does after its node's deletion."""
    stage.status(name, phase="Failed", conditions=[COLLECTED])
    with suppress(kubetls.NotFound):  # the pool may have been first
        stage.session.delete(f"{stage.path}/{name}", grace=0)


def fall_silent(stage: Stage, name: str) -> None:
    """Mark a pod as not ready, as the node controller does after 40 s of silence."""
    stage.status(name, conditions=[NOT_READY])


def shut_down(stage: Stage, name: str) -> None:
    """Fail a pod, as a kubelet does when its node is shut down gracefully."""
    words = "Pod was terminated in response to imminent node shutdown."
    stage.status(name, phase="Failed", reason="Terminated", message=words)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (taint, "Taint manager"),
        (collect, "PodGC: node no longer exists"),
        (fall_silent, "n1 has stopped reporting"),
        (shut_down, "imminent node shutdown"),
    ],
    ids=["taint", "node deleted", "silent kubelet", "shutdown"],
)
def test_calls_of_a_node_that_is_gone_are_lost_to_it(
    stage: Stage, what: Callable[[Stage, str], None], words: str
) -> None:
    """NodeLost, with the controllers' words, within 5 s of the end of the link."""
    with Play(stage, function=time.sleep, argument=60) as play:
        name = play.runner()["metadata"]["name"]
        agent = stage.agent(name)
        stage.until(play.call.running)
        time.sleep(0.5)
        what(stage, name)
        began = time.monotonic()
        vanish(agent)
        error: Any = play.call.exception(20)
        took = time.monotonic() - began
        assert isinstance(error, RunnerLost), error
        assert ("NodeLost", True) == (error.reason, error.started)
        assert words in error.detail
        assert took < 6


@pytest.mark.parametrize("what", [taint, collect, shut_down])
def test_boot_on_a_node_that_is_gone_says_so(
    stage: Stage, what: Callable[[Stage, str], None]
) -> None:
    """The pool boots another at once; nobody waits for boot_timeout."""
    with Play(stage) as play:
        name = play.runner()["metadata"]["name"]
        stage.bind(name, "n1")
        what(stage, name)
        error = play.error()
        assert type(error) is BootError
        assert error.reason.startswith("NodeLost: ")
        stage.until(lambda: play.runner()["metadata"]["name"] != name)


def test_runner_that_works_on_is_not_given_up_for_its_node(stage: Stage) -> None:
    """A silent kubelet is no verdict: while the link stands, calls go on."""
    with Play(stage) as play:
        name = play.runner()["metadata"]["name"]
        stage.agent(name)
        assert 1 == play.call.result(20)
        fall_silent(stage, name)
        time.sleep(1)
        assert 2 == play.pool.call(abs, -2)
        assert [name] == [found.name for found in play.pool.status().runners]
