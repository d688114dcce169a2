"""Pools of one process share one session and one watch, and hear of their own pods."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from flame_backend.backends.kubernetes.refusals import INSTANCE, PROCESS
from flame_backend.backends.kubernetes.shared import Shared, join, leave
from flame_backend.errors import ConfigurationError
from kubetls import testing

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/api/v1/namespaces/default/pods"


class Heard:
    """What one pool was told."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, bool]] = []
        self.pods: list[dict[str, Any]] = []
        self.more = threading.Condition()

    def __call__(self, name: str, pod: dict[str, Any], removed: bool) -> None:
        with self.more:
            self.changes.append((name, removed))
            self.pods.append(pod)
            self.more.notify_all()

    def wait(self, count: int) -> list[tuple[str, bool]]:
        """Return the changes once there are so many."""
        with self.more:
            assert self.more.wait_for(lambda: len(self.changes) >= count, 10)
            return list(self.changes)


@pytest.fixture
def fake() -> Iterator[testing.Server]:
    """Lend a scripted API server."""
    with testing.server() as made:
        yield made


@pytest.fixture
def shared(fake: testing.Server) -> Iterator[Shared]:
    """Lend what pools with one session share."""
    with kubetls.session(fake.config) as session:
        found = join(session)
        yield found
        leave(found)


def runner(shared: Shared, name: str, instance: str) -> dict[str, Any]:
    """Return a runner's pod, with more in it than matters."""
    labels = {PROCESS: shared.process, INSTANCE: instance}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": labels,
            "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    }


def watches(fake: testing.Server) -> int:
    """Return how many watches were asked for."""
    return sum("watch" in request.query for request in fake.requests)


def test_pools_share_one_watch_and_hear_of_their_own(
    fake: testing.Server, shared: Shared
) -> None:
    """A third process' pod is nobody's, and one that left hears no more."""
    first, second = Heard(), Heard()
    shared.follow(PATH, "one", first)
    shared.follow(PATH, "two", second)
    fake.put(runner(shared, "a", "one"))
    fake.put(runner(shared, "b", "two"))
    fake.put(runner(shared, "c", "three"))
    assert [("a", False)] == first.wait(1)
    assert [("b", False)] == second.wait(1)
    shared.unfollow(PATH, "one")
    fake.delete(runner(shared, "a", "one"))
    fake.delete(runner(shared, "b", "two"))
    assert [("b", False), ("b", True)] == second.wait(2)
    assert 1 == len(first.changes)
    assert 1 == watches(fake)
    shared.unfollow(PATH, "two")
    assert not [t for t in threading.enumerate() if t.name == "flame-monitor"]


def test_pool_that_comes_later_hears_too(fake: testing.Server, shared: Shared) -> None:
    """A watch that ended with its last pool begins again with the next."""
    for instance in ("one", "two"):
        heard = Heard()
        shared.follow(PATH, instance, heard)
        fake.put(runner(shared, instance, instance))
        assert [(instance, False)] == heard.wait(1)
        shared.unfollow(PATH, instance)
        shared.unfollow(PATH, instance)


def test_only_what_matters_is_kept_of_a_pod(
    fake: testing.Server, shared: Shared
) -> None:
    """Neither containers nor who wrote which field."""
    heard = Heard()
    shared.follow(PATH, "one", heard)
    fake.put(runner(shared, "a", "one"))
    heard.wait(1)
    (pod,) = heard.pods
    assert {"metadata", "spec", "status"} == set(pod)
    assert "managedFields" not in pod["metadata"]
    assert {"nodeName": "n"} == pod["spec"]
    assert {"phase": "Running"} == pod["status"]
    shared.unfollow(PATH, "one")


def test_pool_that_raises_ends_no_watch(
    fake: testing.Server, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next change arrives."""
    heard = Heard()

    def changed(name: str, pod: dict[str, Any], removed: bool) -> None:
        heard(name, pod, removed)
        raise LookupError(name)

    shared.follow(PATH, "one", changed)
    fake.put(runner(shared, "a", "one"))
    fake.put(runner(shared, "b", "one"))
    assert [("a", False), ("b", False)] == heard.wait(2)
    shared.unfollow(PATH, "one")
    assert 2 == sum("a runner pod's change" in text for text in caplog.messages)


def test_pools_of_one_session_share_and_others_do_not(fake: testing.Server) -> None:
    """By the session that was given, each with a label of its own."""
    with kubetls.session(fake.config) as one, kubetls.session(fake.config) as two:
        first, again, other = join(one), join(one), join(two)
        assert first is again
        assert first is not other
        assert first.process != other.process
        for found in (first, again, other):
            leave(found)
        new = join(one)
        assert new is not first
        leave(new)
        one.get("/version")  # it is its maker's to close


def test_session_of_its_own_is_closed_with_the_last_pool(
    fake: testing.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before."""
    opened = kubetls.session(fake.config)
    monkeypatch.setattr(
        "flame_backend.backends.kubernetes.shared.in_cluster_session",
        lambda _: opened,
    )
    first, second = join(None), join(None)
    assert first is second
    leave(first)
    second.session.get("/version")
    leave(second)
    with pytest.raises(kubetls.KubeTLSError):
        opened.get("/version")


def test_outside_a_pod_nothing_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt finds no half-made session."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            join(None)


def test_forked_child_shares_nothing_with_its_parent(shared: Shared) -> None:
    """It would watch with labels of its parent."""
    del shared
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        from flame_backend.backends.kubernetes import shared as module

        os.write(writer, str(len(module._joined)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"0" == os.read(reader, 8)
    for end in (reader, writer):
        os.close(end)
