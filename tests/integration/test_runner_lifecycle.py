"""Runner pods from first to last on a real node: outages, siblings, and the end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.cluster import BuiltCluster, control_planes
from tests.integration.programs import (
    HEAD,
    await_runners,
    await_told,
    finish,
    go,
    run,
    told,
)

if TYPE_CHECKING:
    from tests.cluster.control_plane import ControlPlane
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster


def plane_of(space: Space) -> ControlPlane:
    """Return the control plane that may be stopped."""
    cluster = space.cluster
    if not isinstance(cluster, BuiltCluster) or cluster.name not in control_planes:
        pytest.skip("the API server of a user's cluster is not stopped")
    return control_planes[cluster.name]


def test_outage_of_the_api_server_disturbs_no_call(space: Space) -> None:
    """Calls go on, new ones too; a boot asked for meanwhile comes afterwards."""
    space.start(
        HEAD
        + """
with Pool('outage', max=2, boot_timeout=90) as pool:
    tell('ready', pool.call, abs, -1)
    say('go')
    await_outage()
    long = pool.submit(work, 12)
    second = pool.submit(abs, -2)
    tell('long', long.result)
    tell('second', second.result)
"""
    )
    await_told(space, "go")
    plane = plane_of(space)
    plane.stop_apiserver()
    time.sleep(12)
    plane.restart_apiserver()
    finish(space, 120)
    found = told(space)
    assert 12 == found["long"]["value"], found
    assert 2 == found["second"]["value"], found


def test_loss_in_an_outage_is_told_all_the_same(space: Space) -> None:
    """Nobody can say why, and nobody is kept waiting: Unknown, within 5 s."""
    space.start(
        HEAD
        + """
def die():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(100)

with Pool('blind', max=1, boot_timeout=90) as pool:
    tell('ready', pool.call, abs, -1)
    say('go')
    await_outage()
    tell('call', pool.call, die)
    tell('after', pool.call, abs, -2)
"""
    )
    await_told(space, "go")
    plane = plane_of(space)
    plane.stop_apiserver()
    time.sleep(14)
    plane.restart_apiserver()
    finish(space, 120)
    found = told(space)
    assert ("RunnerLost", "Unknown") == (
        found["call"]["kind"],
        found["call"]["reason"],
    ), found
    assert "zygote" in found["call"]["detail"]
    assert found["call"]["took"] < 6
    assert 2 == found["after"].get("value"), found


def test_processes_of_one_pod_leave_each_others_runners_alone(space: Space) -> None:
    """Rule 17: a second process starts, sweeps, calls and ends beside the first."""
    found = run(
        space,
        """
if os.environ.get('SIBLING'):
    with Pool('same', max=1, backend=KubernetesBackend(port=range(7400, 7420))) as pool:
        tell('sibling', pool.call, abs, -3)
    sys.exit()

def hold():
    'Run until another call of the same pod says so.'
    open('/tmp/held', 'w').close()
    while os.path.exists('/tmp/held'):
        time.sleep(0.1)
    return 'held'

backend = KubernetesBackend(port=range(7400, 7420))
with Pool('same', max=1, max_concurrency=2, backend=backend) as pool:
    long = pool.submit(hold)
    while not pool.call(os.path.exists, '/tmp/held'):
        time.sleep(0.1)
    source = open('/proc/self/cmdline').read().split('\\0')[3]
    command = [sys.executable, '-P', '-c', source]
    subprocess.run(command, env={**os.environ, 'SIBLING': '1'}, check=True)
    tell('running', lambda: not long.done())
    pool.call(os.remove, '/tmp/held')
    tell('long', long.result)
    tell('same', lambda: pool.status().backend['address'].rpartition(':')[2])
""",
    )
    assert 3 == found["sibling"]["value"]
    assert "held" == found["long"]["value"]
    assert found["running"]["value"]
    assert 7400 <= int(found["same"]["value"]) < 7420


def test_max_pods_makes_boots_wait_for_room(space: Space) -> None:
    """Two pools of one pod, room for one runner: one after the other."""
    found = run(
        space,
        """
first = Pool('first', max=1, backend=KubernetesBackend(max_pods=1))
second = Pool('second', max=1, backend=KubernetesBackend(max_pods=1))
tell('first', first.call, abs, -1)
waiting = second.submit(abs, -2)
time.sleep(4)
tell('waits', lambda: not waiting.done())
first.shutdown()
tell('second', waiting.result)
second.shutdown()
""",
    )
    assert (1, True, 2) == tuple(
        found[c]["value"] for c in ("first", "waits", "second")
    )


def test_failed_pod_is_kept_for_a_look(space: Space) -> None:
    """keep_failed: it is there to describe, and gone with its time or the pool."""
    space.start(
        HEAD
        + """
missing = {'configMapKeyRef': {'name': 'none', 'key': 'k'}}
backend = KubernetesBackend(
    manifest=change(env=[{'name': 'A', 'valueFrom': missing}]), keep_failed=300)
with Pool('kept', max=1, backend=backend) as pool:
    tell('call', pool.call, abs, -1)
    await_go()
"""
    )
    await_told(space, "call")
    (name,) = await_runners(space, 1, "Pending", 10)
    assert "none" in space.kubectl("describe", "pod", name)
    go(space)
    finish(space)


@pytest.mark.parametrize("hostname", [None, "another-name"])
def test_parent_finds_its_own_pod_without_being_told(
    space: Space, hostname: str | None
) -> None:
    """By its host name; where the user has set another one, by its address."""
    spec = {} if hostname is None else {"hostname": hostname}
    found = run(
        space,
        """
for name in ('POD_NAME', 'POD_NAMESPACE', 'POD_UID', 'POD_IP'):
    os.environ.pop(name)
with Pool('own', max=1) as pool:
    tell('call', pool.call, abs, -1)
    tell('parent', lambda: pool.status().backend['parent'])
""",
        **spec,
    )
    assert 1 == found["call"]["value"], found
    assert "app" == found["parent"]["value"]


def test_burst_of_boots_comes_and_goes(space: Space) -> None:
    """Six runners at once, each with a call, and nothing left."""
    found = run(
        space,
        """
with Pool('burst', max=6) as pool:
    tell('sum', lambda: sum(pool.map(work, [1.0] * 12)))
""",
        seconds=150,
    )
    assert 12.0 == found["sum"]["value"]


def first_process(space: Space, name: str) -> int:
    """Return the first process of a pod's container, as the host sees it."""
    uid = space.kubectl("get", "pod", name, "-o", "jsonpath={.metadata.uid}")
    for folder in Path("/proc").iterdir():
        try:
            if f"\0POD_UID={uid}\0".encode() not in (folder / "environ").read_bytes():
                continue
            status = (folder / "status").read_text()
        except (OSError, ValueError):
            continue
        inner = next(ln for ln in status.splitlines() if ln.startswith("NSpid:"))
        if inner.split()[-1] == "1":
            return int(folder.name)
    pytest.skip("the pod's processes are on another machine")


RESTARTED_SECONDS = 60.0, 120.0
"""After a kill: no runner of before runs any more; no pod of before is there."""


def test_restarted_parent_takes_away_what_it_left(space: Space) -> None:
    """SIGKILL of its container, in the middle of calls: the pod goes on as another.

    The runners of before end by themselves and their pods are swept by the parent of
    the same pod that comes after; its own runners stay.
    """
    space.start(
        HEAD
        + """
with Pool('again', max=2) as pool:
    calls = [pool.submit(work, 600) for _ in range(2)]
    while pool.status().running < 2:
        time.sleep(0.1)
    say('busy')
    time.sleep(600)
""",
        restartPolicy="Always",
    )
    await_told(space, "busy")
    before = set(await_runners(space, 2))
    began = time.monotonic()
    os.kill(first_process(space, "app"), signal.SIGKILL)

    def left() -> dict[str, str]:
        pods = {pod["metadata"]["name"]: pod for pod in space.runners()}
        return {name: pods[name]["status"]["phase"] for name in pods.keys() & before}

    running, gone = RESTARTED_SECONDS
    while "Running" in left().values():
        assert time.monotonic() - began < running, left()
        time.sleep(0.5)
    await_told(space, "busy", 60)
    while left():
        assert time.monotonic() - began < gone, left()
        time.sleep(0.5)
    after = set(await_runners(space, 2))
    assert not after & before
    space.kubectl("delete", "pod", "app", "--grace-period=0", "--force")
    space.await_no_runners(60)
