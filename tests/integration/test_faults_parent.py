"""Ends of parents and of the API server, in the middle of calls and of boots.

Calls tell a ledger that outlives everybody, so a call that is lost or runs twice shows
there, whatever the parent believes.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration import faults
from tests.integration.faults import MARK, Ledger
from tests.integration.programs import HEAD, await_runners, finish, told

if TYPE_CHECKING:
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster

RUNNING_SECONDS = 60.0
"""No runner runs longer than this without its parent."""

OBJECT_SECONDS = 120.0
"""No pod of a runner is there longer than this while a parent lives."""

OUTAGE_CALLS = 20
"""Two runners with calls of a second each do more in half a minute."""

TOLD_SECONDS = 6.0

STREAM = (
    HEAD
    + MARK
    + """
import secrets
ME = secrets.token_hex(3)
OVER = threading.Event()

def job(name, seconds=1.0):
    mark('run', name)
    time.sleep(seconds)
    mark('end', name)
    return name

def ended(future):
    error = future.exception()
    mark('got' if error is None else type(error).__name__, future.name)

def stream(pool, width):
    'Keep calls under way, each with a name of its own, until told to stop.'
    room, count, all_of_them = threading.Semaphore(width), 0, []
    while not OVER.wait(0.02):
        if not room.acquire(timeout=0.2):
            continue
        future = pool.submit(job, f'{ME}-{count}')
        future.name = f'{ME}-{count}'
        future.add_done_callback(lambda found: (room.release(), ended(found)))
        all_of_them.append(future)
        count += 1
    return all_of_them

mark('start', ME)
"""
)


def check_once(ledger: Ledger) -> None:
    """No call ran twice or ended twice, and what was returned had run to its end."""
    lines = ledger.lines()
    told: dict[str, list[str]] = {"run": [], "end": [], "got": [], "other": []}
    for word, name, *_ in lines:
        if "-" in name:
            told[word if word in told else "other"].append(name)
    for names in (told["run"], told["end"], told["got"] + told["other"]):
        assert len(set(names)) == len(names), lines
    assert set(told["got"]) <= set(told["end"]) <= set(told["run"]), lines


def await_gone(space: Space, names: set[str], seconds: float, what: str) -> None:
    """Wait until none of some pods is there, or none of them runs."""
    deadline = time.monotonic() + seconds
    while True:
        left = {
            pod["metadata"]["name"]: pod["status"].get("phase")
            for pod in space.runners()
            if pod["metadata"]["name"] in names
        }
        if what == "running":
            left = {name: phase for name, phase in left.items() if phase == "Running"}
        if not left:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"{what} after {seconds:g} s: {left}")
        time.sleep(0.5)


@pytest.mark.parametrize("moment", ["calls", "boots"])
def test_killed_container_of_the_parent_leaves_nothing(
    space: Space, moment: str
) -> None:
    """SIGKILL; the kubelet starts it again in the same pod, and it goes on."""
    ledger = Ledger(space)
    body = "with Pool('kill', max=3, boot_timeout=60) as pool:\n    stream(pool, 5)\n"
    env = {"LEDGER": ledger.address}
    space.start(STREAM + body, env=env, restartPolicy="Always")
    if moment == "calls":
        ledger.await_lines("got", 6)
    else:
        deadline = time.monotonic() + 60
        while not space.runners():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    faults.kill(space, "app")
    old = {pod["metadata"]["name"] for pod in space.runners()}
    began = time.monotonic()
    assert old
    await_gone(space, old, RUNNING_SECONDS, "running")
    ledger.await_lines("start", 2)
    await_gone(space, old, OBJECT_SECONDS - (time.monotonic() - began), "there")
    second = ledger.lines("start")[1][1]
    deadline = time.monotonic() + 30
    while not any(words[1].startswith(second) for words in ledger.lines("got")):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    check_once(ledger)
    space.kubectl("delete", "pod", "app", "--grace-period=1")
    space.await_no_runners(RUNNING_SECONDS)


@pytest.mark.parametrize("heeds", [True, False], ids=["heeded", "ignored"])
def test_deleted_parent_takes_its_runners_along(space: Space, heeds: bool) -> None:
    """With SIGTERM heeded, calls that run are finished first; ignored, it is killed."""
    ledger = Ledger(space)
    handler = "signal.signal(signal.SIGTERM, lambda *_: OVER.set())\n" if heeds else ""
    space.start(
        STREAM
        + handler
        + """
with Pool('gone', max=2) as pool:
    calls = stream(pool, 4)
    mark('closing', ME)
mark('closed', ME)
""",
        env={"LEDGER": ledger.address},
        terminationGracePeriodSeconds=20 if heeds else 2,
    )
    ledger.await_lines("got", 3)
    space.kubectl("delete", "pod", "app", "--wait=false")
    space.await_no_runners(RUNNING_SECONDS)
    check_once(ledger)
    if heeds:
        # Its runners are gone a moment before it says so.
        ledger.await_lines("closed", 1)
        # What had begun was finished, and everything that was asked for has ended.
        ran, ended, got = (len(ledger.lines(word)) for word in ("run", "end", "got"))
        assert ran == ended == got


def test_half_a_minute_without_the_api_server(space: Space) -> None:
    """Calls go on, a runner that dies is told, boots come later, nothing is left."""
    plane = faults.plane_of(space)
    ledger = Ledger(space)
    space.start(
        STREAM
        + """
signal.signal(signal.SIGTERM, lambda *_: OVER.set())
with Pool('outage', max=4, boot_timeout=90) as pool:
    for _ in pool.map(job, [f'{ME}-first-{n}' for n in range(2)], [3, 3]):
        pass
    calls = stream(pool, 8)
    errors = [call.exception() for call in calls]
    tell('ended', lambda: [type(error).__name__ for error in errors if error])
""",
        env={"LEDGER": ledger.address},
        terminationGracePeriodSeconds=60,
    )
    ledger.await_lines("end", 2)
    victim = faults.process(space, await_runners(space, 2)[0])
    # The stream is asking for two more runners now.
    plane.stop_apiserver()
    stopped = time.time()
    time.sleep(15)
    os.kill(victim, signal.SIGKILL)
    killed = time.time()
    time.sleep(15)
    started = time.time()
    plane.restart_apiserver()
    await_runners(space, 4, seconds=90)
    ledger.await_lines("got", len(ledger.lines("got")) + 4)
    end = "import os, signal; os.kill(1, signal.SIGTERM)"
    space.kubectl("exec", "app", "--", "python", "-c", end)
    finish(space, 90)
    check_once(ledger)
    meanwhile = [words[0] for at, words in ledger.entries() if stopped < at < started]
    assert OUTAGE_CALLS < meanwhile.count("got")
    # One call was running on the runner that died; it was told without a cause.
    lost = [at for at, words in ledger.entries() if words[0] == "RunnerLost"]
    assert [killed] == [pytest.approx(at, abs=TOLD_SECONDS) for at in lost]
    assert ["RunnerLost"] == told(space)["ended"]["value"]
