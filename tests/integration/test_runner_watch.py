"""What the API server sees of a process with several pools: one watch."""

from __future__ import annotations

import base64
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from flame_backend.backends.kubernetes.shared import join, leave
from tests.integration.stage import Play, Stage, staged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.control_plane


@pytest.fixture
def stage(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    yield from staged(control_plane, tmp_path, monkeypatch)


def watches(stage: Stage) -> list[dict[str, Any]]:
    """Return the watches of pods of the namespace, as audited."""
    return [
        entry
        for entry in stage.plane.audit_entries()
        if entry["verb"] == "watch"
        and entry["objectRef"].get("namespace") == stage.name
        and entry["objectRef"]["resource"] == "pods"
        and entry["stage"] == "ResponseStarted"
    ]


def test_pools_of_a_process_have_one_watch(stage: Stage) -> None:
    """Three pools with a backend each; every one hears of its own runners' ends."""
    with Play(stage, "a") as first, Play(stage, "b") as second:
        with Play(stage, "c") as third:
            for play in (first, second, third):
                name = play.runner()["metadata"]["name"]
                stage.bind(name, "n")
                stage.container(name, terminated={"exitCode": 3, "message": name})
            for play in (first, second, third):
                error = play.error()
                assert error.runner in error.reason
                assert error.runner.startswith(play.pool.status().name)
        # One that goes leaves the others their watch, and so does one that comes.
        with Play(stage, "late") as late:
            name = late.runner()["metadata"]["name"]
            stage.session.delete(f"{stage.path}/{name}", grace=0)
            assert "Deleted" in str(late.error())
    assert 1 == len(watches(stage))
    assert [] == [t.name for t in threading.enumerate() if "monitor" in t.name]


def test_new_watch_follows_the_last_pool(stage: Stage) -> None:
    """When all have closed, it ends; a pool that comes later has one of its own."""
    for count in (1, 2):
        with Play(stage) as play:
            name = play.runner()["metadata"]["name"]
            stage.session.delete(f"{stage.path}/{name}", grace=0)
            assert "Deleted" in str(play.error())
        assert count == len(watches(stage))


def test_session_of_the_pod_is_shared_until_its_last_borrower(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in-cluster session for all backends; closed once, by the last."""
    volume = tmp_path / "volume"
    volume.mkdir()
    plane = stage.plane
    (volume / "token").write_text(plane.token("default", stage.name))
    (volume / "namespace").write_text(stage.name)
    config = json.loads(plane.kubeconfig())
    cluster = config["clusters"][0]["cluster"]
    (volume / "ca.crt").write_bytes(
        base64.b64decode(cluster["certificate-authority-data"])
    )
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(plane.port))
    real = kubetls.in_cluster
    monkeypatch.setattr(kubetls, "in_cluster", lambda: real(volume))
    first, second = join(None), join(None)
    assert first is second
    leave(first)
    assert first.session.get("/version")["gitVersion"]
    leave(second)
    with pytest.raises(kubetls.KubeTLSError):
        first.session.get("/version")
    third = join(None)
    assert third.session is not first.session
    assert third.session.get("/version")["gitVersion"]
    leave(third)
