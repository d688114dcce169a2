"""What a compromised agent sends without end, and what others notice of it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from flame_backend.backends import control_link
from flame_backend.backends.base import PoolSpec
from flame_backend.backends.control_link import ControlLink
from flame_backend.backends.hub import READS_AT_ONCE, Hub
from flame_backend.errors import LinkClosed, MalformedFrame
from flame_backend.wire.frames import Kind, pack_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

READY = pack_frame(Kind.READY, json.dumps({"phases": []}).encode())
LINE = {"runner": "liar", "slot": 0, "call": 1, "text": "x" * 16_000 + "\n"}
LOG = pack_frame(Kind.LOG, json.dumps(LINE).encode())


class Heard:
    """Events of a hub, down to what is looked at here."""

    def __init__(self) -> None:
        self.ready: list[str] = []
        self.gone: list[str] = []

    def agent_ready(self, agent: str, _phases: object) -> None:
        self.ready.append(agent)

    def agent_gone(self, agent: str, _reason: str, *, expected: bool) -> None:
        self.gone.append(agent)


# From a process of its own: threads would take turns with the hub's.
_POUR = """
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as sock:
    flood = sys.stdin.buffer.read()
    try:
        while True:
            sock.sendall(flood)
    except OSError:
        pass
"""


@contextmanager
def flooded(flood: bytes) -> Iterator[tuple[Hub, Heard]]:
    """Lend a hub with an agent that sends something again and again."""
    heard = Heard()
    hub = Hub(PoolSpec(name="flood", instance="i"), heard)  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    with subprocess.Popen(
        [sys.executable, "-c", _POUR, str(number)],
        stdin=subprocess.PIPE,
        pass_fds=[number],
    ) as process:
        theirs.close()
        assert process.stdin is not None
        process.stdin.write(flood)
        process.stdin.close()
        hub.adopt("liar", ours, passes=False)
        try:
            yield hub, heard
        finally:
            hub.close()


def await_true(what: list[str], seconds: float = 5) -> None:
    """Wait until something is heard."""
    deadline = time.monotonic() + seconds
    while not what and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize(
    "flood", [pack_frame(Kind.PING) * 4000, LOG * 4], ids=["heartbeats", "lines"]
)
def test_flood_leaves_turns_for_other_links_and_for_the_clock(flood: bytes) -> None:
    """An agent that never stops is one of many, not the only one who is served."""
    with flooded(flood) as (hub, heard):
        time.sleep(1)
        ours, theirs = socket.socketpair()
        with theirs:
            hub.adopt("honest", ours, passes=False)
            moments: list[str] = []
            hub.after(0.1, lambda: moments.append("came"))
            theirs.sendall(READY)
            await_true(heard.ready)
            await_true(moments)
            assert (["honest"], ["came"]) == (heard.ready, moments)
            assert [] == heard.gone


def test_flood_is_read_no_faster_than_an_honest_agent_may_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest stays in its own socket; the parent has other things to do."""
    monkeypatch.setattr(control_link, "BURST_BYTES", 1024 * 1024)
    monkeypatch.setattr(control_link, "BYTES_PER_SECOND", 1024.0)
    hub = Hub(PoolSpec(name="flood", instance="i"), Heard())  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    hub.adopt("liar", ours, passes=False)
    # The burst, one turn above it, and what sockets hold.
    most = 1024 * 1024 + READS_AT_ONCE * 64 * 1024 + 1024 * 1024
    theirs.settimeout(1)
    with theirs, pytest.raises(TimeoutError):
        theirs.sendall(bytes(LOG) * (most // len(LOG)))
    hub.close()


def test_patience_with_a_link_comes_back() -> None:
    """What it may bring grows with time, up to the burst."""
    ours, theirs = socket.socketpair()
    with theirs:
        link = ControlLink("a", ours, -1, passes=False)
        assert not link.overdrawn()
        # So much that what it costs in time is longer than a busy machine stands still.
        pings = [pack_frame(Kind.PING) * 1000] * 20
        for some in pings:
            theirs.sendall(some)
            link.read()
        assert not link.overdrawn()
        link._allowed.spend(control_link.BURST_BYTES, time.monotonic())
        waits = sum(map(len, pings)) / control_link.BYTES_PER_SECOND
        assert waits >= link.overdrawn() > 0
        time.sleep(waits)
        assert not link.overdrawn()
        theirs.close()
        with pytest.raises(LinkClosed):
            link.read()
        link.close()


def test_second_ready_costs_the_link() -> None:
    """An app is loaded once; each READY would open the runner's slots again."""
    with flooded(READY) as (_, heard):
        await_true(heard.gone)
        assert (["liar"], ["liar"]) == (heard.ready, heard.gone)


END = {"runner": "r", "slot": 0, "exit_code": 0, "signal": None, "detail": ""}


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (Kind.READY, {"phases": [["import", 10**400]]}),
        (Kind.READY, {"phases": [["import", float("nan")]]}),
        (Kind.READY, {"phases": [["import", float("inf")]]}),
        (Kind.READY, {"phases": [[7, 1.0]]}),
        (Kind.SLOT_ENDED, END | {"exit_code": 10**4000}),
        (Kind.SLOT_ENDED, END | {"signal": -(10**4000)}),
        (Kind.SLOT_ENDED, END | {"slot": 1.0}),
        (Kind.LOG, LINE | {"call": 10**4000}),
        (Kind.LOG, LINE | {"call": -1}),
        (Kind.LOG, LINE | {"runner": {}}),
        (Kind.LOG, [LINE]),
    ],
    ids=lambda value: str(value)[:48],
)
def test_facts_that_no_agent_writes_are_refused(kind: Kind, facts: object) -> None:
    """With the one error that costs the link; another is logged for each frame."""
    with pytest.raises(MalformedFrame, match=kind.name):
        control_link.parsed(kind, json.dumps(facts).encode())


def test_number_without_end_costs_the_link() -> None:
    """It was a step that failed, and the agent could go on, unpaused."""
    body = json.dumps({"phases": [["import", 10**400]]}).encode()
    with flooded(pack_frame(Kind.READY, body)) as (_, heard):
        await_true(heard.gone)
        assert ["liar"] == heard.gone
