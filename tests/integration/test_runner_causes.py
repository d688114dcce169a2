"""Named causes from a real kubelet and API server, in the exception of the caller.

Each parent is a pod and tells how its calls ended; no runner pod is left by any.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.manifests import account
from tests.integration.programs import (
    HEAD,
    await_runners,
    await_told,
    finish,
    go,
    run,
)

if TYPE_CHECKING:
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster

TOLD_SECONDS = 5.0
"""Callers know why within this time of the loss."""


def test_out_of_memory_reaches_every_call_of_the_runner(space: Space) -> None:
    """OOMKilled, 137, signal 9: for the one who did it and the one beside it."""
    found = run(
        space,
        """
def eat():
    # Cgroups v2 end the whole container; v1 the process of the highest score, and
    # whose container's first process goes loses all others.
    with open('/proc/1/oom_score_adj', 'w') as file:
        file.write('1000')
    kept = []
    while True:
        kept.append(bytearray(b'x' * 4_000_000))

size = {'memory': '160Mi', 'cpu': '500m'}
# Guaranteed: the kubelet leaves its processes a low score.
backend = KubernetesBackend(resources={'requests': size, 'limits': size})
with Pool('oom', max=1, max_concurrency=2, backend=backend) as pool:
    tell('ready', pool.call, abs, -1)
    beside = threading.Thread(target=tell, args=['beside', pool.call, work, 100])
    beside.start()
    time.sleep(2)
    tell('eater', pool.call, eat)
    beside.join()
    tell('after', pool.call, abs, -2)
""",
    )
    assert 2 == found["after"]["value"]
    for case in ("eater", "beside"):
        facts = found[case]
        assert "RunnerLost" == facts["kind"], facts
        assert ("OOMKilled", 137, 9) == (
            facts["reason"],
            facts["exit_code"],
            facts["signal"],
        ), facts
        assert facts["started"]


def test_process_that_the_kernel_kills_for_memory_is_told_so(space: Space) -> None:
    """Cgroups v1 end one process: its call says OOMKilled, the others go on.

    On v2 the container goes as a whole, which is the test above.
    """
    found = run(
        space,
        """
def eat():
    with open('/proc/self/oom_score_adj', 'w') as file:
        file.write('1000')
    kept = []
    while True:
        kept.append(bytearray(b'x' * 4_000_000))

size = {'memory': '160Mi', 'cpu': '500m'}
backend = KubernetesBackend(resources={'requests': size, 'limits': size})
with Pool('oom', max=1, max_concurrency=2, backend=backend) as pool:
    tell('ready', pool.call, abs, -1)
    tell('killed', pool.call, os.kill, 0, 9)
    tell('eater', pool.call, eat)
    tell('after', pool.call, abs, -2)
""",
    )
    assert 2 == found["after"]["value"]
    eater = found["eater"]
    if "RunnerLost" == eater["kind"]:
        assert "OOMKilled" == eater["reason"], eater
        return
    assert "CallCrashed" == eater["kind"], eater
    assert "OOMKilled" in eater["text"], eater
    assert "CallCrashed" == found["killed"]["kind"]
    assert "OOMKilled" not in found["killed"]["text"], "nor is every SIGKILL one"


def test_boots_that_cannot_work_end_early_and_say_why(space: Space) -> None:
    """Image, policy, configuration: long before the boot's own time."""
    found = run(
        space,
        """
missing = {'configMapKeyRef': {'name': 'no-such-map', 'key': 'k'}}
closed = 'localhost:1/none:1'
attempt('pull', 120, manifest=change(image=closed, imagePullPolicy='Always'))
attempt('never', 120, manifest=change(image=closed, imagePullPolicy='Never'))
attempt('name', 120, manifest=change(image='Not A Name'))
attempt('config', 120, manifest=change(env=[{'name': 'A', 'valueFrom': missing}]))
attempt('import', 120, pool={'preload': ['no_such_module']})
attempt('command', 120, manifest=change(workingDir='/dev/null/nowhere'))
""",
        seconds=200,
    )
    assert ["ImagePullError"] * 3 == [
        found[case]["kind"] for case in ("pull", "never", "name")
    ], found
    assert "pull" == found["pull"]["phase"]
    assert "localhost:1" in found["pull"]["reason"]
    assert found["pull"]["took"] < 45
    assert "ErrImageNeverPull" in found["never"]["reason"]
    assert "InvalidImageName" in found["name"]["reason"]
    assert "ContainerConfigError" == found["config"]["kind"], found["config"]
    assert "no-such-map" in found["config"]["reason"]
    assert "AppImportError" == found["import"]["kind"]
    assert "no_such_module" in found["import"]["log_tail"]
    assert "ContainerConfigError" == found["command"]["kind"], found["command"]
    for case in ("never", "name", "config", "import", "command"):
        assert found[case]["took"] < 25, (case, found[case])


def test_failed_init_container_is_named(space: Space) -> None:
    """Which one, its exit code, and its own words where it left some."""
    found = run(
        space,
        """
image = os.environ['IMAGE']
failing = "open('/dev/termination-log', 'w').write('no schema'); raise SystemExit(3)"
setup = {'name': 'setup', 'image': image, 'command': ['python', '-c', failing]}
attempt('init', 60, manifest={'spec': {'initContainers': [setup]}})
""",
        env={"IMAGE": space.cluster.image or ""},
    )
    facts = found["init"]
    assert ("BootError", "init") == (facts["kind"], facts["phase"]), facts
    assert "init container setup ended with exit code 3" in facts["reason"]
    assert "no schema" in facts["reason"]


def test_unschedulable_waits_and_tells_the_schedulers_words(space: Space) -> None:
    """The whole boot_timeout, as a node may come; each try says why."""
    found = run(
        space,
        "attempt('nowhere', 6, manifest={'spec': {'nodeSelector': {'no': 'node'}}})",
    )
    facts = found["nowhere"]
    assert ("Unschedulable", "schedule") == (facts["kind"], facts["phase"])
    assert "node affinity/selector" in facts["reason"]
    assert facts["took"] > 6


def test_caller_waits_for_room_in_the_quota(space: Space) -> None:
    """A quota that is full fails nobody: the call runs when a pod has gone."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "two"},
        "spec": {"hard": {"pods": "2"}},
    }
    space.start("import time; time.sleep(600)", "other")
    space.start(HEAD + "time.sleep(3)\nsay('began')\nattempt('waits', 90)")
    space.apply(quota)
    await_told(space, "began")
    time.sleep(5)
    assert [] == space.runners()
    space.kubectl("delete", "pod", "other", "--grace-period=0", "--force")
    facts = await_told(space, "waits")
    assert "result" == facts["kind"], facts
    assert facts["took"] > 5
    finish(space)


def test_refused_pods_are_told_at_once(space: Space) -> None:
    """LimitRange and PodSecurity: BootDenied with the API server's own words.

    And what makes the pods fit the profile is an option.
    """
    space.start(
        HEAD
        + """
with Pool('before', max=1) as pool:
    tell('before', pool.call, abs, -1)
await_go()
attempt('limits', 60, resources={'limits': {'memory': '4Gi'}})
await_go()
attempt('security', 60)
attempt('hardened', 60, hardening='restricted')
""",
    )
    await_told(space, "before")
    space.apply(
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "small"},
            "spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]},
        }
    )
    go(space)
    facts = await_told(space, "limits")
    assert "BootDenied" == facts["kind"], facts
    assert "LimitRange: " in facts["reason"]
    assert "maximum memory usage per Container is 1Gi" in facts["reason"]
    assert facts["took"] < 10
    label = "pod-security.kubernetes.io/enforce=restricted"
    space.kubectl("delete", "limitrange", "small")
    space.cluster.kubectl("label", "namespace", space.name, label)
    go(space)
    facts = await_told(space, "security")
    assert "BootDenied" == facts["kind"], facts
    assert "PodSecurity: " in facts["reason"]
    assert "runAsNonRoot" in facts["reason"]
    assert "result" == await_told(space, "hardened")["kind"]
    finish(space)


def test_missing_rights_name_the_verb(space: Space) -> None:
    """RBAC: the caller hears which verb on which resource is missing."""
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]
    space.apply(*account("weak", rules))
    found = run(space, "attempt('denied', 30)", account_name="weak")
    assert "BootDenied" == found["denied"]["kind"]
    assert 'cannot create resource "pods"' in found["denied"]["reason"]
    assert found["denied"]["took"] < 15


BUSY = """
backend = KubernetesBackend()
with Pool('busy', max=1, shutdown_timeout=SHUTDOWN, backend=backend) as pool:
    tell('ready', pool.call, abs, -1)
    tell('call', pool.call, work, SECONDS)
    tell('after', pool.call, abs, -2)
"""


def busy(space: Space, seconds: float, shutdown: float = 2) -> str:
    """Have a runner run a long call; return its name."""
    body = BUSY.replace("SHUTDOWN", str(shutdown)).replace("SECONDS", str(seconds))
    space.start(HEAD + body)
    await_told(space, "ready")
    time.sleep(1)
    (name,) = await_runners(space, 1)
    return name


def evict(space: Space, name: str) -> None:
    """Evict a pod as a drain of its node does."""
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": space.name},
    }
    path = f"/api/v1/namespaces/{space.name}/pods/{name}/eviction"
    space.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def test_evicted_runner_is_named(space: Space) -> None:
    """A call that does not end in its grace is lost, and says to whom."""
    evict(space, busy(space, 100))
    facts = await_told(space, "call", 30)
    assert ("RunnerLost", "Evicted", True) == (
        facts["kind"],
        facts["reason"],
        facts["started"],
    ), facts
    assert "viction" in facts["detail"]
    assert 2 == await_told(space, "after")["value"]
    finish(space)


def test_call_that_ends_in_its_grace_has_its_result(space: Space) -> None:
    """An evicted runner takes no new call, and finishes the one it has."""
    evict(space, busy(space, 10, shutdown=20))
    assert 10 == await_told(space, "call", 30)["value"]
    assert 2 == await_told(space, "after")["value"]
    finish(space)


def test_deleted_runner_is_named(space: Space) -> None:
    """By kubectl, in the middle of a call."""
    space.kubectl("delete", "pod", busy(space, 100), "--wait=false")
    facts = await_told(space, "call", 30)
    assert ("RunnerLost", "Deleted") == (facts["kind"], facts["reason"]), facts
    finish(space)


def agent_of(runner: str) -> int:
    """Return the process of a runner's agent, as the host sees it."""
    for folder in Path("/proc").iterdir():
        try:
            if f'"runner":"{runner}"'.encode() not in (folder / "environ").read_bytes():
                continue
            status = (folder / "status").read_text()
        except (OSError, ValueError):
            continue
        inner = next(ln for ln in status.splitlines() if ln.startswith("NSpid:"))
        if inner.split()[-1] == "1":
            return int(folder.name)
    pytest.skip("the runner's processes are on another machine")


def test_killed_agent_is_named(space: Space) -> None:
    """SIGKILL of a runner's first process: Crashed by signal 9, within 5 s."""
    runner = busy(space, 100)
    agent = agent_of(runner)
    began = time.time()
    os.kill(agent, signal.SIGKILL)
    facts = await_told(space, "call", 30)
    # The parent's clock is this host's; to read its log from here takes its time.
    assert facts["at"] - began < TOLD_SECONDS
    assert ("RunnerLost", "Crashed", 137, 9) == (
        facts["kind"],
        facts["reason"],
        facts["exit_code"],
        facts["signal"],
    ), facts
    assert 2 == await_told(space, "after")["value"]
    finish(space)


def test_last_output_is_told_where_logs_may_be_read(space: Space) -> None:
    """What a crashed runner printed last stands in the exception."""
    found = run(
        space,
        """
def last_words():
    os.write(2, b'the last words\\n')
    time.sleep(0.5)
    zygote = os.getppid()
    os.kill(zygote, signal.SIGKILL)
    time.sleep(100)

with Pool('words', max=1) as pool:
    tell('call', pool.call, last_words)
""",
    )
    facts = found["call"]
    assert ("RunnerLost", "Crashed") == (facts["kind"], facts["reason"]), facts
    assert "the last words" in facts["detail"]
