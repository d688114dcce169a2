"""Placements on pods: the same as on local processes, with a kubelet in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.programs import run

if TYPE_CHECKING:
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster

PROGRAM = """
def serve(how):
    if how == 'graceful':
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print('serving', flush=True)
    try:
        time.sleep(600)
    finally:
        print('closed', flush=True)

def until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)

def crash():
    os.kill(os.getpid(), signal.SIGKILL)

backend = KubernetesBackend()
options = {'max': 1, 'max_concurrency': 2, 'max_lifetime': 3600}
with Pool('placed', backend=backend, **options) as pool:
    served = pool.place(serve, 'graceful')
    until(lambda: 'serving' in served.call.log_tail)
    tell('beside', pool.call, work, 0.1)
    served.stop(20)
    tell('stopped', lambda: [served.exitcode, served.join(0), served.call.log_tail])
    crashed = pool.place(crash)
    tell('crashed', crashed.join, 60)
    last = pool.place(serve, '')
    until(lambda: 'serving' in last.call.log_tail)
    tell('after', pool.call, work, 0.1)
tell('ended', lambda: [last.alive, last.exitcode, last.join(0)])
"""


def test_placement_on_a_pod_has_every_end(space: Space) -> None:
    """Stopped with time to end well, crashed, and ended with its pool; no pod left."""
    found = run(space, PROGRAM)
    assert 0.1 == found["beside"]["value"] == found["after"]["value"]
    assert [0, True, "serving\nclosed\n"] == found["stopped"]["value"]
    assert ("CallCrashed", 9) == (found["crashed"]["kind"], found["crashed"]["signal"])
    assert [False, -15, True] == found["ended"]["value"]
