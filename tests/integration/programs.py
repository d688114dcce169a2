"""Programs of parents, given to pods as text; what they print is read back as JSON."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.space import FINISHED

if TYPE_CHECKING:
    from tests.integration.space import Space

HEAD = """
import json, os, signal, socket, subprocess, sys, threading, time
import flame_backend as flame
from flame_backend import KubernetesBackend, Pool

FACTS = ('reason', 'phase', 'exit_code', 'signal', 'started', 'log_tail', 'detail')

def write(facts):
    'Write a line in one piece: threads tell at the same time.'
    os.write(1, json.dumps(facts).encode() + b'\\n')

def tell(case, what, *args):
    'Print how something ended, and when, as JSON.'
    began = time.monotonic()
    try:
        facts = {'kind': 'result', 'value': what(*args)}
    except flame.FlameError as error:
        facts = {'kind': type(error).__name__, 'text': str(error)}
        facts |= {name: getattr(error, name, None) for name in FACTS}
    took = time.monotonic() - began
    write({'case': case, 'took': took, 'at': time.time(), **facts})

def say(case):
    write({'case': case, 'kind': 'said'})

def await_go():
    'Wait until the test has done its part.'
    while not os.path.exists('/tmp/go'):
        time.sleep(0.05)
    os.remove('/tmp/go')

def await_outage():
    'Wait until the API server takes no connection, and has ended those it had.'
    address = os.environ['KUBERNETES_SERVICE_HOST'], 443
    try:
        while True:
            socket.create_connection(address, 1).close()
            time.sleep(0.1)
    except OSError:
        time.sleep(2)  # its other connections end after its listener

def attempt(case, boot, pool=None, **options):
    'Make one call on a pool of its own.'
    backend = KubernetesBackend(**options)
    with Pool('t', max=1, boot_timeout=boot, backend=backend, **(pool or {})) as found:
        tell(case, found.call, abs, -1)

def change(**fields):
    'A manifest that changes the container.'
    return {'spec': {'containers': [fields]}}

def work(seconds):
    time.sleep(seconds)
    return seconds
"""


def told(space: Space, name: str = "app") -> dict[str, dict[str, Any]]:
    """Return what a program has printed so far, by case."""
    found = {}
    for line in space.kubectl("logs", name, "--ignore-errors").splitlines():
        if line.startswith('{"case"'):
            facts = json.loads(line)
            found[facts["case"]] = facts
    return found


def await_told(
    space: Space, case: str, seconds: float = 60, name: str = "app"
) -> dict[str, Any]:
    """Wait until a program has printed a case."""
    deadline = time.monotonic() + seconds
    while case not in (found := told(space, name)):
        if time.monotonic() > deadline:
            text = space.kubectl("logs", name, "--ignore-errors")
            pytest.fail(f"{case} was not told in {seconds:g} s\n{text[-3000:]}")
        time.sleep(0.3)
    return found[case]


def go(space: Space, name: str = "app") -> None:
    """Let a program go on that waits for this test."""
    touch = "open('/tmp/go', 'w')"
    space.kubectl("exec", name, "--", "python", "-c", touch)


def run(
    space: Space, body: str, seconds: float = 120, name: str = "app", **spec: Any
) -> dict[str, dict[str, Any]]:
    """Run a program to its end; return what it told, by case."""
    space.start(HEAD + body, name, **spec)
    finish(space, seconds, name)
    return told(space, name)


def finish(space: Space, seconds: float = 60, name: str = "app") -> None:
    """Wait for a program's end, which must be a good one, with no runner left."""
    phase = space.await_phase(name, FINISHED, seconds)
    assert phase == "Succeeded", space.kubectl("logs", name)
    assert [] == space.runners()


def await_runners(
    space: Space, count: int, phase: str = "Running", seconds: float = 60
) -> list[str]:
    """Wait until so many runner pods are in a phase; return their names."""
    deadline = time.monotonic() + seconds
    while True:
        pods = space.runners()
        found = [pod for pod in pods if pod["status"].get("phase") == phase]
        if len(found) == count:
            return [pod["metadata"]["name"] for pod in found]
        if time.monotonic() > deadline:
            states = [(p["metadata"]["name"], p["status"].get("phase")) for p in pods]
            pytest.fail(f"not {count} runners {phase} in {seconds:g} s: {states}")
        time.sleep(0.2)
