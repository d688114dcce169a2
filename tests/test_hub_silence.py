"""Agents of which nothing is heard: suspected, trusted again, or given up on time."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

import flame_backend as flame
from flame_backend.backends import hub as hubs
from flame_backend.backends.base import PoolSpec
from flame_backend.backends.hub import Hub
from flame_backend.wire.frames import Kind, pack_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

BEAT, SUSPECT, DEAD = 0.4, 1.0, 2.0
PING = pack_frame(Kind.PING)


class Heard:
    """Events of a hub, with the moments at which they came."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def agent_silent(self, agent: str, *, silent: bool) -> None:
        self.told.append(("silent" if silent else "speaks", time.monotonic()))

    def agent_gone(self, agent: str, reason: str, *, expected: bool) -> None:
        assert not expected
        self.told.append((reason, time.monotonic()))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.told]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def agent(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[socket.socket, float]]:
    """Lend the far end of a hub's link, and the moment of its last word."""
    monkeypatch.setattr(hubs, "HEARTBEAT_SECONDS", BEAT)
    monkeypatch.setattr(hubs, "SUSPECT_SECONDS", SUSPECT)
    monkeypatch.setattr(hubs, "DEAD_SECONDS", DEAD)
    hub = Hub(PoolSpec(name="quiet", instance="i"), heard)  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    hub.adopt("a", ours, passes=False)
    # Between two beats, so that whoever looks at beats alone is late.
    time.sleep(BEAT / 2)
    # Before it is sent: this thread may not run for a while behind that.
    last = time.monotonic()
    theirs.sendall(PING)
    with theirs:
        yield theirs, last
    hub.close()


def await_told(heard: Heard, count: int, seconds: float = 20) -> None:
    """Wait until so many events have come."""
    deadline = time.monotonic() + seconds
    while len(heard.told) < count and time.monotonic() < deadline:
        time.sleep(0.005)


def test_silent_agent_is_suspected_then_given_up_on_time(
    heard: Heard, agent: tuple[socket.socket, float]
) -> None:
    """Counted from its last word, not from the heartbeat that follows."""
    _, last = agent
    await_told(heard, 2)
    (first, suspected), (second, gone) = heard.told
    assert (first, second) == ("silent", f"silent for {DEAD:g} s")
    assert suspected - last >= SUSPECT - 0.05
    assert gone - last >= DEAD - 0.05
    # A beat later it would be 0.2 s more; a busy machine may take some of them.
    assert min(suspected - last - SUSPECT, gone - last - DEAD) < BEAT / 2


def test_one_word_clears_the_suspicion(
    heard: Heard, agent: tuple[socket.socket, float]
) -> None:
    """It is trusted at once, and its silence counted anew."""
    sock, last = agent
    await_told(heard, 1)
    sock.sendall(PING)
    await_told(heard, 2)
    assert ["silent", "speaks"] == heard.names[:2]
    await_told(heard, 4)
    assert heard.told[3][1] - last >= SUSPECT + DEAD - 0.05


def test_stopped_agent_gets_no_calls_until_it_goes_on() -> None:
    """Local runners whose agent is stopped: others serve meanwhile, no call is lost."""
    with flame.Pool("stopped", max=2, backend=flame.LocalBackend()) as pool:
        assert pool.call(abs, -1) == 1
        (first,) = pool.status().runners
        pid = pool.status().backend["agent_pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            deadline = time.monotonic() + 25
            while pool.status().runners[0].state != "suspect":
                assert time.monotonic() < deadline, pool.status()
                time.sleep(0.1)
            future = pool.submit(abs, -2)
            assert future.result(30) == 2
            assert future.call.runner != first.name
        finally:
            os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + 10
        while pool.status().runners[0].state != "idle":
            assert time.monotonic() < deadline, pool.status()
            time.sleep(0.1)
        assert len(pool.status().runners) == 2
