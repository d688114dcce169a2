"""Runner pods on a real cluster: they run calls, fail with a cause, and go away."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster.manifests import account, pod

if TYPE_CHECKING:
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster

HEAD = """
import os, socket, time
import flame_backend as flame

def where(n):
    time.sleep(0.4)
    return n, socket.gethostname()

def attempt(**options):
    backend = flame.KubernetesBackend(**options)
    try:
        with flame.Pool('t', max=1, boot_timeout=BOOT, backend=backend) as pool:
            print('result', pool.call(where, 1)[0])
    except flame.FlameError as error:
        print(type(error).__name__, '|', error)
"""


def program(body: str, boot: float = 60) -> str:
    """Return a parent's program."""
    return HEAD.replace("BOOT", str(boot)) + body


def test_two_runner_pods_run_calls_and_are_gone(space: Space) -> None:
    """Results are right, both pods worked, and none is left when the pool closed."""
    text = space.run(
        program("""
with flame.Pool('pair', max=2) as pool:
    found = list(pool.map(where, range(20)))
    print([n for n, _ in found] == list(range(20)), len({h for _, h in found}))
    print(pool.status().ready)
print('closed')
""")
    )
    assert ["True 2", "2", "closed"] == text.splitlines()
    assert [] == space.runners()


def test_runner_is_a_copy_of_the_app_without_its_tokens(space: Space) -> None:
    """Environment and user come along, the API token does not, FLAME_PARENT is gone."""
    text = space.run(
        program("""
def look():
    kept = os.environ.get('APP_SETTING'), os.environ.get('EXTRA'), os.getuid()
    mounted = os.path.exists('/var/run/secrets/kubernetes.io')
    hidden = mounted, 'FLAME_PARENT' in os.environ
    return kept, hidden

backend = flame.KubernetesBackend(env={'EXTRA': 'more'})
with flame.Pool('copy', max=1, backend=backend) as pool:
    print(pool.call(look))
"""),
        env={"APP_SETTING": "inherited"},
    )
    assert "(('inherited', 'more', 1000), (False, False))" == text.strip()


def test_failed_boots_say_why_and_leave_no_pod(space: Space) -> None:
    """Image, scheduling, configuration, validation: each with its own error."""
    text = space.run(
        program(
            """
missing = {'configMapKeyRef': {'name': 'none', 'key': 'k'}}

def change(**fields):
    return {'spec': {'containers': [fields]}}

attempt(manifest=change(image='localhost/none:1', imagePullPolicy='Never'))
attempt(manifest={'spec': {'nodeSelector': {'no': 'node'}}})
attempt(manifest=change(env=[{'name': 'A', 'valueFrom': missing}]))
attempt(manifest=change(imagePullPolizy='Never'))
attempt(manifest={'spec': {'hostNetwork': True}})
attempt(manifest=lambda pod, app: 1 / 0)
""",
            boot=12,
        ),
        seconds=240,
    )
    lines = [line for line in text.splitlines() if "|" in line or "result" in line]
    kinds = [line.split(" |")[0] for line in lines]
    assert [
        "ImagePullError",
        "Unschedulable",
        "ContainerConfigError",
        "BootDenied",
        "ManifestError",
        "ManifestError",
    ] == kinds, text
    assert "imagePullPolizy" in text
    assert "hostNetwork" in text
    space.await_no_runners()


def test_quota_is_named(space: Space) -> None:
    """A namespace that has no room for the whole boot_timeout: QuotaExceeded."""
    space.start("import time; time.sleep(600)", "other")
    space.start(program("time.sleep(5)\nattempt()", boot=5))
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "two"},
        "spec": {"hard": {"pods": "2"}},
    }
    space.apply(quota)
    assert "Succeeded" == space.await_phase("app", ("Succeeded", "Failed"), 60)
    text = space.kubectl("logs", "app")
    assert "QuotaExceeded |" in text
    assert "exceeded quota: two" in text


def test_missing_rights_are_named(space: Space) -> None:
    """Without create the caller hears the API server's own words."""
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]
    space.apply(*account("weak", rules))
    text = space.run(program("attempt()"), account_name="weak")
    assert "BootDenied |" in text
    assert "cannot create resource" in text


def test_killed_runner_is_told_and_replaced(space: Space) -> None:
    """A runner deleted in a call ends in RunnerLost; the next call works."""
    space.start(
        program("""
def work(n):
    time.sleep(n)
    return n

with flame.Pool('lost', max=1) as pool:
    print(pool.call(work, 0), flush=True)
    lost = pool.submit(work, 120)
    while not lost.running():
        time.sleep(0.1)
    print('works', flush=True)
    try:
        lost.result()
    except flame.RunnerLost as error:
        print(error.reason, error.started, flush=True)
    print(pool.call(work, 0), flush=True)
"""),
    )
    deadline = time.monotonic() + 60
    while "works" not in space.kubectl("logs", "app", "--ignore-errors"):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    time.sleep(1)
    (runner,) = space.runners()
    space.kubectl("delete", "pod", runner["metadata"]["name"], "--grace-period=1")
    assert "Succeeded" == space.await_phase("app", ("Succeeded", "Failed"), 60)
    lines = space.kubectl("logs", "app").splitlines()
    # The loss is logged as well, to standard error, which is in the same log.
    told = [line for line in lines if " Deleted (" not in line]
    assert ["0", "works", "Deleted True", "0"] == told
    space.await_no_runners()


def test_runners_of_a_killed_parent_go(space: Space) -> None:
    """SIGKILL of the parent: its runners end by themselves and are collected."""
    space.start(
        program("""
with flame.Pool('orphan', max=2) as pool:
    found = [pool.submit(time.sleep, 600) for _ in range(2)]
    time.sleep(600)
"""),
    )
    deadline = time.monotonic() + 60
    while [p["status"]["phase"] for p in space.runners()] != ["Running"] * 2:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    space.kubectl("delete", "pod", "app", "--grace-period=0", "--force")
    space.await_no_runners(60)


def test_stranger_is_not_admitted(space: Space) -> None:
    """A pod of the namespace with a token of its own cannot pass for a runner."""
    text = space.run(
        program("""
import json, ssl, threading
from flame_backend.wire.frames import pack_frame, Kind

backend = flame.KubernetesBackend()
with flame.Pool('guarded', max=1, backend=backend) as pool:
    print(pool.call(where, 7)[0])
    runner = pool.status().runners[0].name
    listener = backend._listener
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=listener.certificate)
    context.set_alpn_protocols(['flame/1'])
    address = backend._addresses[0]
    token = open('/var/run/secrets/kubernetes.io/serviceaccount/token').read()
    hello = {'v': 1, 'runner': runner, 'python': 'p', 'pid': 1, 'token': token}
    hello['package'] = flame.__version__
    for first in (
        pack_frame(Kind.HELLO, json.dumps(hello).encode()),
        pack_frame(Kind.TICKET, bytes(32)),
        pack_frame(Kind.RESULT, b'x'),
        b'x' * 100_000,
    ):
        with socket.create_connection((address, listener.port)) as raw:
            with context.wrap_socket(raw, server_hostname=address) as tls:
                try:
                    tls.sendall(first)
                    print(tls.recv(100))
                except OSError:
                    print(b'')
    print(pool.call(where, 8)[0])
""")
    )
    expected = ["7", "b''", "b''", "b''", "b''", "8"]
    assert expected == [line for line in text.splitlines() if len(line) < 5], text


def test_backend_outside_a_pod_says_why() -> None:
    """It names the remedy, before anything is started."""
    import flame_backend as flame

    with (
        flame.Pool("outside", max=1, backend=flame.KubernetesBackend()) as pool,
        pytest.raises(flame.ConfigurationError, match="LocalBackend"),
    ):
        pool.call(abs, 1)


def test_parent_pod_needs_no_more_than_its_role(space: Space) -> None:
    """Pods need no Secret, no exec, no patch: the shipped rules are enough."""
    rules = [{"apiGroups": [""], "resources": ["pods"],
              "verbs": ["create", "get", "list", "watch", "delete"]}]  # fmt: skip
    space.apply(*account("least", rules))
    manifest = pod(
        "least",
        space.cluster.image or "",
        ["python", "-P", "-c", program("attempt()")],
        account_name="least",
    )
    space.apply(manifest)
    assert "Succeeded" == space.await_phase("least", ("Succeeded", "Failed"), 60)
    assert "result 1\n" == space.kubectl("logs", "least")


def test_rogue_pod_is_not_admitted_and_stops_nobody(space: Space) -> None:
    """Same account, same labels, the audience it read, and a flood: no use.

    It presents the token of its own pod under the name of a runner that is booting.
    """
    space.start(
        program("""
def slow():
    time.sleep(20)

print('start', flush=True)
with flame.Pool('rogue', max=2) as pool:
    held = pool.submit(slow)
    time.sleep(6)
    print('sum', sum(n for n, _ in pool.map(where, range(20))), flush=True)
    held.result()
    print(pool.status().ready, flush=True)
"""),
    )
    deadline = time.monotonic() + 60
    while not (runners := space.runners()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (runner,) = runners
    spec = runner["spec"]
    (token,) = (v for v in spec["volumes"] if v["name"] == "flame-token")
    source = """
import json, os, socket, ssl, time
from flame_backend.wire.frames import pack_frame, Kind

facts = json.loads(os.environ['STOLEN'])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.load_verify_locations(cadata=facts['certificate'])
context.set_alpn_protocols(['flame/1'])
address = facts['addresses'][0]
token = open('/stolen/token').read()
hello = {'v': 1, 'runner': facts['runner'], 'python': 'p', 'pid': 1, 'token': token}
hello['package'] = '0.1.0'
first = pack_frame(Kind.HELLO, json.dumps(hello).encode())
flood, heard, end = [], 0, time.monotonic() + 15
while time.monotonic() < end:
    try:
        flood.append(socket.create_connection((address, facts['port']), 5))
        if len(flood) > 300:
            flood.pop(0).close()
        if len(flood) % 20 == 0:
            with socket.create_connection((address, facts['port']), 5) as raw:
                with context.wrap_socket(raw, server_hostname=address) as tls:
                    tls.sendall(first)
                    heard += len(tls.recv(100))
    except OSError:
        pass
print('heard', heard)
"""
    container = spec["containers"][0]
    stolen = next(e["value"] for e in container["env"] if e["name"] == "FLAME_PARENT")
    thief = pod(
        "thief",
        space.cluster.image or "",
        ["python", "-P", "-c", source],
        env={"STOLEN": stolen},
        volumes=[{**token, "name": "stolen"}],
    )
    mount = {"name": "stolen", "mountPath": "/stolen"}
    thief["spec"]["containers"][0]["volumeMounts"] = [mount]
    thief["metadata"]["labels"] = {"flame-backend/pool": "rogue"}
    space.apply(thief)
    assert "Succeeded" == space.await_phase("app", ("Succeeded", "Failed"), 120)
    text = space.kubectl("logs", "app")
    assert ["start", "sum 190", "2"] == text.splitlines()
    space.await_phase("thief", ("Succeeded", "Failed"), 60)
    assert "heard 0\n" == space.kubectl("logs", "thief")
