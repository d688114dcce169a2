"""Runners on the two workers of a kind cluster, one of which stops in their calls.

Needs kind: `make test-kind`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.kind import KindCluster
from tests.cluster.manifests import HOST, RUNNERS, spread
from tests.integration.programs import HEAD, await_told, finish, run, told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.cluster import Cluster
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster

BELIEF_SECONDS = 60
GONE_SECONDS = 120


def apart() -> dict[str, Any]:
    """Return a manifest that lets no two runners share a node."""
    term = {"labelSelector": RUNNERS, "topologyKey": HOST}
    rule = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return {"spec": {"affinity": {"podAntiAffinity": rule}}}


@pytest.fixture
def kind(cluster: Cluster) -> KindCluster:
    """Return the cluster if it is one of kind, with two workers."""
    if not isinstance(cluster, KindCluster):
        pytest.skip("needs nodes that may be stopped: make test-kind")
    if len(cluster.workers()) < 2:
        pytest.skip(f"the kind cluster {cluster.name} has less than two workers")
    return cluster


SPREAD = """
manifest = json.loads(os.environ['MANIFEST'])
size = int(os.environ['SIZE'])
backend = KubernetesBackend(manifest=manifest)
with Pool('spread', min=size, max=size, boot_timeout=60, backend=backend) as pool:
    pool.wait_ready(60)
    tell('nodes', lambda: [runner.node for runner in pool.status().runners])
    tell('sum', lambda: sum(pool.map(work, [0.5] * 4 * size)))
    calls = [pool.submit(work, 1) for _ in range(size)]
    tell('called', lambda: [(c.result(), c.call.node)[1] for c in calls])
"""


def run_spread(space: Space, manifest: dict[str, Any], size: int, name: str) -> Any:
    """Run a pool of so many runners; return what its parent told."""
    env = {"MANIFEST": json.dumps(manifest), "SIZE": str(size)}
    found = run(space, SPREAD, name=name, env=env)
    assert 0.5 * 4 * size == found["sum"]["value"], found
    return found


@pytest.mark.parametrize(
    ("manifest", "size"),
    [(spread(), 4), (apart(), 2)],
    ids=["topologySpreadConstraints", "podAntiAffinity"],
)
def test_runners_are_spread_over_both_workers(
    space: Space, kind: KindCluster, manifest: dict[str, Any], size: int
) -> None:
    """As the manifest says it; status and calls name the node, and all of them work."""
    found = run_spread(space, manifest, size, "app")
    workers = kind.workers()
    even = dict.fromkeys(workers, size // len(workers))
    assert even == Counter(found["nodes"]["value"]), found
    assert set(found["called"]["value"]) <= set(workers)


# Four callers without a pause, on the parent's node and the other one, until told to
# end; every outcome is written down, and twice a second what the pool believes in.
STREAM = """
manifest = json.loads(os.environ['MANIFEST'])
ended = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: ended.set())

def caller(pool, number):
    turn = 0
    while not ended.is_set():
        value = [number, turn, 'x' * 100]
        tell(f'call {number}-{turn}', one, pool, value)
        turn += 1

def one(pool, value):
    'Return when a call ended, if its result is right.'
    future = pool.submit(echo, value)
    assert future.result() == value
    return time.time(), future.call.runner

def echo(value):
    time.sleep(1.5)
    return value

backend = KubernetesBackend(manifest=manifest)
with Pool('nodes', min=4, max=4, boot_timeout=30, backend=backend) as pool:
    pool.wait_ready(60)
    threads = [threading.Thread(target=caller, args=(pool, n)) for n in range(4)]
    for thread in threads:
        thread.start()
    say('go')
    turn = 0
    while not ended.wait(0.5):
        names = [r.name for r in pool.status().runners if r.node]
        write({'case': f'belief {turn}', 'at': time.time(), 'names': names})
        turn += 1
    for thread in threads:
        thread.join()
tell('closed', lambda: True)
"""


@pytest.fixture
def workers(kind: KindCluster) -> Iterator[tuple[str, str]]:
    """Lend the workers: the parent's, and the one that will fail; both are up after.

    What brings a node back does no harm to one that has not gone.
    """
    stays, fails = kind.workers()[:2]
    yield stays, fails
    state = kind.docker("inspect", "--format", "{{.State.Status}}", fails).strip()
    if state == "paused":
        kind.docker("unpause", fails)
    elif state != "running":
        kind.docker("start", fails)
    kind.await_ready()


def pods_on(space: Space, node: str) -> dict[str, str]:
    """Return the runner pods that were sent to a node: name by UID."""
    return {
        pod["metadata"]["uid"]: pod["metadata"]["name"]
        for pod in space.runners()
        if pod["spec"].get("nodeName") == node
    }


def await_gone(space: Space, uids: set[str], deadline: float) -> float:
    """Wait until none of some pods is an object any more; return when that was."""
    while left := uids & {pod["metadata"]["uid"] for pod in space.runners()}:
        if time.time() > deadline:
            pods = [pod for pod in space.runners() if pod["metadata"]["uid"] in left]
            logs = space.kubectl("logs", "app", "--tail=30")
            pytest.fail(f"pods are left: {json.dumps(pods, indent=1)}\n{logs}")
        time.sleep(0.5)
    return time.time()


def judge_calls(cases: dict[str, dict[str, Any]], began: float) -> Counter[str]:
    """Check each call's outcome: right, or lost with a cause; count the causes."""
    reasons: Counter[str] = Counter()
    late = 0
    for case, facts in cases.items():
        if not case.startswith("call "):
            continue
        if facts["kind"] == "result":
            late += facts["value"][0] > began + BELIEF_SECONDS
            continue
        assert ("RunnerLost", True) == (facts["kind"], facts["started"]), facts
        reasons[f"{facts['reason']}: {facts['detail']}"] += 1
    assert late > 10, cases
    return reasons


def judge_beliefs(
    cases: dict[str, dict[str, Any]], lost: set[str], began: float
) -> float:
    """Return how long the pool took to believe in none of the lost runners."""
    beliefs = [facts for case, facts in cases.items() if case.startswith("belief ")]
    last: float = max(belief["at"] for belief in beliefs if lost & set(belief["names"]))
    assert last < began + BELIEF_SECONDS
    return last - began


def await_no_container(space: Space, kind: KindCluster, node: str) -> None:
    """Wait until a node that is back runs no container of the namespace."""
    label = f"io.kubernetes.pod.namespace={space.name}"
    words = ("exec", node, "crictl", "ps", "--quiet", "--label", label)
    deadline = time.monotonic() + 60
    while left := kind.docker(*words).split():
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("failure", "remedy"), [("stop", "start"), ("pause", "unpause")]
)
def test_worker_that_fails_costs_its_calls_and_no_more(
    space: Space,
    kind: KindCluster,
    workers: tuple[str, str],
    failure: str,
    remedy: str,
) -> None:
    """Every call ends right or in RunnerLost, the pool goes on, no pod object stays.

    Stopped, the node says good-bye with its last packets; paused, it says nothing.
    """
    stays, fails = workers
    manifest = spread("ScheduleAnyway")
    # The parent's own would come along.
    manifest["spec"]["nodeSelector"] = None
    env = {"MANIFEST": json.dumps(manifest)}
    space.start(HEAD + STREAM, env=env, nodeSelector={HOST: stays})
    await_told(space, "go", 90)
    time.sleep(4)
    lost = pods_on(space, fails)
    assert 2 == len(lost), [pod["metadata"]["name"] for pod in space.runners()]
    began = time.time()
    kind.docker(failure, fails, seconds=90)
    gone = await_gone(space, set(lost), began + GONE_SECONDS)
    time.sleep(max(0.0, began + BELIEF_SECONDS + 15 - time.time()))
    space.kubectl("exec", "app", "--", "python", "-c", "import os; os.kill(1, 10)")
    await_told(space, "closed", 90)
    found = told(space)
    reasons = judge_calls(found, began)
    assert 1 <= reasons.total() <= len(lost)
    assert all(reason.startswith("NodeLost: ") for reason in reasons), reasons
    known = judge_beliefs(found, set(lost.values()), began)
    objects = gone - began
    print(f"{failure}: believed in for {known:.0f} s, objects for {objects:.0f} s")
    print(f"{failure}: calls lost: {dict(reasons)}")
    kind.docker(remedy, fails)
    kind.await_ready()
    await_no_container(space, kind, fails)
    again = run_spread(space, spread(), 4, "again")
    assert {stays: 2, fails: 2} == Counter(again["nodes"]["value"]), again
    finish(space)
