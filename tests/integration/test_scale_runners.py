"""Two hundred runners of one parent: real pods and tokens, a real server, no node."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame
from tests.integration.simulated import ACCOUNT, simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import kubetls
    from tests.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.control_plane

FEW, MANY = 20, 200
NAMESPACE = "many"


@pytest.fixture
def session(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[kubetls.Session]:
    """Lend the session of a parent whose runners are simulated."""
    monkeypatch.setenv("POD_NAME", "parent")
    monkeypatch.setenv("POD_NAMESPACE", NAMESPACE)
    with simulated(control_plane, tmp_path, NAMESPACE) as found:
        yield found


def await_ready(pool: flame.Pool, count: int, seconds: float = 120) -> None:
    """Wait until so many runners could take a call."""
    deadline = time.monotonic() + seconds
    while pool.status().ready < count:
        if time.monotonic() > deadline:
            pytest.fail(f"{pool.status().ready} of {count} runners: {pool.status()}")
        time.sleep(0.1)


def requests(plane: ControlPlane) -> list[tuple[str, str, int]]:
    """Return verb, resource and answer of each request of the parent."""
    user = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
    return [
        (
            entry["verb"],
            (entry.get("objectRef") or {}).get("resource", ""),
            int((entry.get("responseStatus") or {}).get("code", 0)),
        )
        for entry in plane.audit_entries()
        if entry["user"].get("username") == user
    ]


def threads() -> int:
    """Return how many threads of ours there are."""
    return sum(thread.name.startswith("flame-") for thread in threading.enumerate())


def descriptors() -> int:
    """Return how many descriptors are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_two_hundred_runners_boot_idle_and_go(
    session: kubetls.Session, control_plane: ControlPlane
) -> None:
    """One POST each and no 429, no thread for any of them, and nothing left."""
    before = descriptors()
    backend = flame.KubernetesBackend(session=session)
    pool = flame.Pool("many", min=FEW, max=MANY, boot_timeout=120, backend=backend)
    with pool:
        pool.wait_ready(60)
        await_ready(pool, FEW)
        few = threads()
        pool.resize(min=MANY)
        await_ready(pool, MANY)
        settled(threads, few)
        assert len({runner.name for runner in pool.status().runners}) == MANY
        # They answer with the id of the call.
        assert MANY == len(set(pool.map(abs, range(MANY))))
    made = Counter(requests(control_plane))
    answers = {code for _, _, code in made}
    assert MANY == made["create", "pods", 201], made
    assert 429 not in answers, made
    assert MANY == sum(n for (verb, *_), n in made.items() if verb == "create")
    # Admission looks each runner up once; the watch brings the rest.
    assert MANY + 5 > made["get", "pods", 200], made
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    left: list[dict[str, Any]] = list(session.list(path, labels="flame-backend/pool"))
    assert [] == left
    # The session keeps a connection for each of its threads.
    settled(descriptors, before + 16)


def settled(what: Callable[[], int], most: int) -> None:
    """Check that something is no more than that, or soon will be."""
    deadline = time.monotonic() + 10
    while what() > most and time.monotonic() < deadline:
        time.sleep(0.2)
    names = sorted(thread.name for thread in threading.enumerate())
    assert what() <= most, names
