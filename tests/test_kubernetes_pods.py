"""Runner pods at an API server that says on demand what a real one rarely does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from flame_backend.backends.kubernetes import pods as pods_module
from flame_backend.backends.kubernetes.disposal import Disposal, Remains
from flame_backend.backends.kubernetes.pods import NONCE, Pods
from kubetls import testing
from tests.runner_manifests import made

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[testing.Server]:
    """Lend an API server."""
    with testing.server() as found:
        yield found


@pytest.fixture
def pods(server: testing.Server) -> Iterator[Pods]:
    """Lend the pods of a pool there."""
    retries = kubetls.Retries(attempts=1)
    with kubetls.session(server.config, retries=retries) as session:
        yield Pods(session, "default", "f00d", "uid-parent")


def runner() -> dict[str, Any]:
    """Return a runner's pod."""
    pod = made(owner_reference=False)
    pod["metadata"]["annotations"][NONCE] = "n"
    return pod


def test_conflict_of_a_pod_that_is_still_there_is_tried_again(
    server: testing.Server, pods: Pods
) -> None:
    """Only another pod of the name makes a deletion needless."""
    uid = pods.create(runner())
    server.fail_next(409, method="DELETE")
    with pytest.raises(kubetls.Conflict):
        pods.delete("pool-abc", uid, 1)
    server.fail_next(409, method="DELETE")
    steps: list[Any] = []
    disposal = Disposal(pods, lambda step: step(), lambda _, step: steps.append(step))
    disposal.take(Remains("pool-abc", "n", uid))
    assert [uid] == list(pods.all())
    steps.pop()()
    assert {} == pods.all()


def test_conflict_of_another_pod_of_the_name_is_the_end(
    server: testing.Server, pods: Pods
) -> None:
    """Whether its successor is there, or nothing is."""
    first = pods.create(runner())
    pods.delete("pool-abc", first, 0)
    server.fail_next(409, method="DELETE")
    pods.delete("pool-abc", first, 0)
    second = pods.create(runner())
    pods.delete("pool-abc", first, 0)
    assert [second] == list(pods.all())


def test_log_of_a_kubelet_that_is_down_is_asked_for_twice(
    server: testing.Server,
) -> None:
    """Its API server says 500, and the usual pauses would be a quarter of a minute."""
    path = kubetls.path("v1", "pods", "pool-abc", namespace="default")
    server.fail_next(500, times=9, path=f"{path}/log")
    with kubetls.session(server.config) as session:
        assert "" == Pods(session, "default", "f00d", "uid").last_output("pool-abc")
    assert 2 == len(server.requests)


def test_log_of_a_kubelet_that_is_silent_is_waited_for_shortly(
    server: testing.Server, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that reads what nobody sends makes all other runners wait."""
    monkeypatch.setattr(
        pods_module, "LOG_TIMEOUT", kubetls.Timeout(connect=2.0, read=0.3)
    )
    server.stall_next(5, path=f"{pods.path}/pool-abc/log")
    began = time.monotonic()
    assert "" == pods.last_output("pool-abc")
    assert time.monotonic() - began < 4
