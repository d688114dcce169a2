"""A compromised runner, from its pod to the app: it was admitted, and then it lies.

Beside it an honest runner of the same pool works on a call for the whole time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.liars import ENDLESS_LIES, REFUSED_LIES, config_map
from tests.integration.programs import HEAD, run

if TYPE_CHECKING:
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster

GROWTH_MIB = 400
"""Of the parent's memory, at its highest, with results of up to 16 MiB."""

PROGRAM = (
    HEAD
    + """
import resource
role = {'LIE': 'honest', 'VICTIM': ''}

def manifest(parent, app):
    mount = {'name': 'double', 'mountPath': '/double'}
    env = [{'name': name, 'value': value} for name, value in role.items()]
    double = {'name': 'double', 'configMap': {'name': 'double', 'defaultMode': 0o555}}
    container = {'env': env, 'volumeMounts': [mount]}
    return {'spec': {'containers': [container], 'volumes': [double]}}

def hold(address):
    'Run until the parent says so.'
    with socket.create_connection(address) as sock:
        return sock.recv(10).decode()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def lied(name, call):
    'Make a call that only a runner which lies can take, and wait for its end.'
    role['LIE'] = name
    tell(name, call, abs, -1)
    give_up = time.monotonic() + 20
    while len(pool.status().runners) > 1 and time.monotonic() < give_up:
        time.sleep(0.1)

backend = KubernetesBackend(manifest=manifest, python='/double/run')
listener = socket.create_server((os.environ['POD_IP'], 0))
pool = Pool('liars', max=3, boot_timeout=60, backend=backend)
held = pool.submit(hold, listener.getsockname())
peer, _ = listener.accept()
role['VICTIM'] = held.call.runner
before = peak()
"""
)

END = """
role['LIE'] = 'honest'
tell('after', pool.call, abs, -2)
tell('canary', os.path.exists, '/tmp/canary')
tell('growth', lambda: peak() - before)
peer.sendall(b'held')
tell('held', held.result)
tell('tail', lambda: held.call.log_tail)
pool.shutdown()
"""


def lies(space: Space, body: str, seconds: float = 180) -> dict[str, dict[str, Any]]:
    """Run a program beside runners that lie; check what holds for every one."""
    space.apply(config_map())
    found = run(space, PROGRAM + body + END, seconds)
    import json

    print(json.dumps(found, indent=1))
    assert 2 == found["after"]["value"], found
    assert not found["canary"]["value"]
    assert GROWTH_MIB > found["growth"]["value"]
    assert "held" == found["held"]["value"], found
    return found


def test_lies_cost_the_liar_its_link_and_nobody_else_anything(space: Space) -> None:
    """Pickles, bombs, others' calls and slots, frames beyond every limit."""
    body = f"for name in {REFUSED_LIES}:\n    lied(name, pool.call)\n"
    found = lies(space, body)
    for name in REFUSED_LIES:
        assert ("RunnerLost", True) == (
            found[name]["kind"],
            found[name]["started"],
        ), found[name]
        assert found[name]["took"] < 30, found[name]


def test_what_never_ends_ends_with_the_timeout_of_the_call(space: Space) -> None:
    """A frame that trickles in, endless progress; the liar heeds no order to stop."""
    body = f"""
for name in {ENDLESS_LIES}:
    lied(name, pool.options(timeout=5).call)
"""
    found = lies(space, body)
    for name in ENDLESS_LIES:
        assert "CallTimeout" == found[name]["kind"], found[name]
        assert found[name]["took"] < 20, found[name]


def test_what_a_liar_repeats_counts_once(space: Space) -> None:
    """Results, tickets and readiness; what it may say by itself is data and no more."""
    found = lies(
        space,
        """
role['LIE'] = 'twice'
tell('first', pool.call, abs, -1)
role['LIE'] = 'honest'
tell('second', pool.call, abs, -3)
while len(pool.status().runners) > 1:
    time.sleep(0.1)
for name in ('pickles', 'wrong_tickets', 'readiness'):
    lied(name, pool.call)
""",
    )
    assert "twice" == found["first"]["value"]
    # The second copy came as an answer to a call that it was not for.
    assert "RunnerLost" == found["second"]["kind"], found["second"]
    assert "its own" == found["wrong_tickets"]["value"]
    assert "RunnerLost" == found["readiness"]["kind"], found["readiness"]
    # The pickle begins like an empty dict; it was not loaded.
    assert {} == found["pickles"]["value"]


FLOOD = """
role['LIE'] = 'flood'
flood = pool.options(timeout=36).submit(abs, -1)
flooded = threading.Thread(target=tell, args=['flood', flood.result])
flooded.start()
while not flood.running():
    time.sleep(0.1)
time.sleep(5)
role['LIE'] = 'honest'
used = time.process_time()
tell('beside', pool.call, abs, -5)
flooded.join()
tell('cpu', lambda: time.process_time() - used)
"""


def test_flood_on_one_control_link_leaves_the_others_alone(space: Space) -> None:
    """Heartbeats without end: other runners boot, answer, and are not given up."""
    found = lies(space, FLOOD)
    # Longer than an honest runner may be silent.
    assert "CallTimeout" == found["flood"]["kind"], found["flood"]
    assert found["flood"]["took"] > 35
    assert found["cpu"]["value"] < found["flood"]["took"] / 4
    assert 5 == found["beside"]["value"], found["beside"]
    assert found["beside"]["took"] < 20
