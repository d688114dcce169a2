"""Links between parent and runner that swallow packets, or are reset midway.

Packets are dropped in the network namespace of one pod; a second runner of the same
pool shows that nobody else is concerned.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration import faults
from tests.integration.faults import MARK, Ledger, Timeline
from tests.integration.programs import HEAD, await_told, finish, go, told

if TYPE_CHECKING:
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster

EXIT_PARENT_LOST = 14

LOST_SECONDS = 37.0
"""30 s of silence, 4 more to ask the pod for its cause, and 3 to tell of it."""

SWALLOWED = (
    HEAD
    + MARK
    + """
OVER = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: OVER.set())

def hold():
    mark('held', socket.gethostname())
    time.sleep(300)

def where():
    time.sleep(0.1)
    return socket.gethostname()

with Pool('hole', max=2, boot_timeout=60) as pool:
    held = threading.Thread(target=tell, args=['held', pool.call, hold])
    held.start()
    tell('beside', pool.call, where)
    honest = set()
    while held.is_alive():
        honest.add(pool.call(where))
    tell('honest', lambda: sorted(honest))
    pair = [pool.submit(work, 3) for _ in range(2)]
    tell('after', lambda: [call.result() for call in pair])
    tell('again', lambda: len({call.call.runner for call in pair}))
"""
)


@pytest.mark.parametrize("lost", ["to the runner", "to the parent", "both ways"])
def test_swallowed_packets_end_the_call_and_the_runner(space: Space, lost: str) -> None:
    """RunnerLost with a cause; the runner ends by itself; the next call works."""
    ledger = Ledger(space)
    with Timeline(space) as timeline:
        space.start(SWALLOWED, env={"LEDGER": ledger.address})
        await_told(space, "beside")
        ledger.await_lines("held", 1)
        (victim,) = (words[1] for words in ledger.lines("held"))
        parent, runner = faults.address(space, "app"), faults.address(space, victim)
        rules = {
            "to the runner": {victim: parent},
            "to the parent": {"app": runner},
            "both ways": {victim: parent, "app": runner},
        }[lost]
        with faults.holes(space, rules):
            began = time.time()
            found = await_told(space, "held", LOST_SECONDS + 20)
            # The parent's clock is this host's; to read its log takes its time.
            assert found["at"] - began < LOST_SECONDS
        finish(space, 60)
        timeline.await_gone()
    assert ("RunnerLost", True) == (found["kind"], found["started"]), found
    assert found["reason"]
    facts = told(space)
    assert victim not in facts["honest"]["value"]
    assert ([3, 3], 2) == (facts["after"]["value"], facts["again"]["value"])
    # 143 and 137 would be the kubelet's doing, and the API server's word.
    assert {EXIT_PARENT_LOST} == timeline.exit_codes(victim), timeline.lines()


CUT = (
    HEAD
    + MARK
    + """
SIZE = 64 << 20

def nap(seconds):
    mark('napping', socket.gethostname())
    time.sleep(seconds)

class Nap:
    'Keeps the runner from reading on while it unpickles this.'
    def __reduce__(self):
        return nap, (10,)

def take(data):
    mark('ran', 'take')
    return len(data[1])

def give(waits):
    mark('napping', socket.gethostname())
    if waits:
        await_go()
        mark('gives', socket.gethostname())
    return bytes(SIZE)

with Pool('cut', max=1, boot_timeout=60) as pool:
    tell('ready', pool.call, abs, -1)
    if os.environ['CUT'] == 'argument':
        tell('cut', pool.call, take, (Nap(), os.urandom(SIZE)))
        tell('after', lambda: pool.call(take, (0, bytes(SIZE))) == SIZE)
    else:
        tell('cut', pool.call, give, True)
        tell('after', lambda: len(pool.call(give, False)) == SIZE)
"""
)


@pytest.mark.parametrize("what", ["argument", "result"])
def test_reset_in_the_middle_of_something_large(space: Space, what: str) -> None:
    """A request that did not arrive is sent again; a result that did not is lost."""
    ledger = Ledger(space)
    space.start(CUT, env={"LEDGER": ledger.address, "CUT": what})
    ledger.await_lines("napping", 1)
    (victim,) = (words[1] for words in ledger.lines("napping"))
    if what == "result":
        # Nobody reads: the runner is stuck in the middle of its result.
        faults.kill(space, "app", signal.SIGSTOP)
        go(space, victim)
        ledger.await_lines("gives", 1)
        time.sleep(1)  # to fill what the link takes
    with faults.resets(space, "app", victim):
        if what == "result":
            faults.kill(space, "app", signal.SIGCONT)
        found = await_told(space, "cut", 60)
    finish(space, 60)
    assert told(space)["after"]["value"]
    if what == "argument":
        assert ("result", 64 << 20) == (found["kind"], found["value"]), found
        assert 2 == len(ledger.lines("ran"))
    else:
        assert ("RunnerLost", True) == (found["kind"], found["started"]), found
        assert found["reason"]
        assert 2 == len(ledger.lines("napping"))
