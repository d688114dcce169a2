"""When a read looks for its frame before it sleeps, and when it has learned not to."""

from __future__ import annotations

import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from flame_backend.errors import LinkClosed
from flame_backend.wire import lookout
from flame_backend.wire.frames import Kind, Limits, pack_frame
from flame_backend.wire.link import Link
from flame_backend.wire.lookout import (
    DISTURBED_SECONDS,
    MOST_RESTS,
    QUIET_SECONDS,
    Disturbance,
    Lookout,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPLY = pack_frame(Kind.RESULT, b"x", 1)
SIZE = 4096


class Watched(socket.socket):
    """A socket that counts the looks, may be slow at them, and knows who sleeps."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.looks = 0
        self.slow = 0.0
        self.wake: Callable[[], object] | None = None

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        if flags & socket.MSG_DONTWAIT:
            self.looks += 1
            time.sleep(self.slow)
        elif self.wake is not None:
            self.wake()
        return super().recv(size, flags)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Watched]]:
    """Lend both ends of a connection, undisturbed so far."""
    lookout.disturbance.until = 0.0
    ours, theirs = socket.socketpair()
    watched = Watched(theirs)
    with ours, watched:
        yield ours, watched
    lookout.disturbance.until = 0.0


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else wants the CPU, whatever this machine does meanwhile."""
    monkeypatch.setattr(lookout, "DISTURBED_SECONDS", float("inf"))


@pytest.mark.usefixtures("undisturbed")
def test_reads_that_look_in_vain_look_ever_more_rarely(
    ends: tuple[socket.socket, Watched],
) -> None:
    """Answers that take long are slept for; a quick one changes that."""
    ours, sock = ends
    eyes, looked = Lookout(sock, sock.recv), []
    sock.wake = partial(ours.sendall, REPLY)
    for _ in range(12):
        before = sock.looks
        assert eyes.receive(SIZE) == REPLY
        looked.append(sock.looks > before)
    pauses = [1, 2, 4]
    wanted = [True]
    for pause in pauses:
        wanted += [False] * pause + [True]
    assert looked == (wanted + [False] * 12)[:12]
    eyes.rests, sock.wake = 0, None
    for _ in range(3):
        ours.sendall(REPLY)
        assert eyes.receive(SIZE) == REPLY
        assert eyes.rests == 0


@pytest.mark.usefixtures("undisturbed")
def test_pause_between_looks_has_an_end(ends: tuple[socket.socket, Watched]) -> None:
    """However long calls took, quick ones are noticed again."""
    ours, sock = ends
    eyes = Lookout(sock, sock.recv)
    sock.wake = partial(ours.sendall, REPLY)
    for _ in range(10):
        eyes.rests = 0
        eyes.receive(SIZE)
    assert eyes.rests == MOST_RESTS


def test_one_look_that_took_too_long_stops_all_links(
    ends: tuple[socket.socket, Watched],
) -> None:
    """Who looks while others want the CPU would wait whole time slices for them."""
    ours, sock = ends
    sock.slow = 2 * DISTURBED_SECONDS
    sock.wake = partial(ours.sendall, REPLY)
    assert Lookout(sock, sock.recv).receive(SIZE) == REPLY
    assert sock.looks == 1
    sock.wake = None
    lookout.disturbance.until += 60
    other = Lookout(sock, sock.recv)
    ours.sendall(REPLY)
    assert other.receive(SIZE) == REPLY
    assert sock.looks == 1


def test_what_a_slow_look_finds_is_not_lost(
    ends: tuple[socket.socket, Watched],
) -> None:
    """It was taken off the socket."""
    ours, sock = ends
    sock.slow = 2 * DISTURBED_SECONDS
    ours.sendall(REPLY)
    assert Lookout(sock, sock.recv).receive(SIZE) == REPLY
    assert lookout.disturbance.until


def test_disturbed_processes_stop_looking_for_longer_and_longer() -> None:
    """Up to two seconds; after a quiet time it starts anew."""
    first, longest = QUIET_SECONDS
    found = Disturbance()
    now, spans = 10.0, []
    for _ in range(10):
        found.noticed(now)
        spans.append(round(found.until - now, 6))
        now = found.until
    assert spans[:3] == [first, 2 * first, 4 * first]
    assert spans[-1] == longest
    now = found.until + 2 * longest
    found.noticed(now)
    assert round(found.until - now, 6) == first


def test_link_that_ends_while_it_is_looked_at_says_so(
    ends: tuple[socket.socket, Watched],
) -> None:
    """The end of the peer is no frame."""
    ours, sock = ends
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(LinkClosed):
        Link(sock, Limits(SIZE)).receive_small(Kind.RESULT)


def test_frame_in_pieces_is_whole(ends: tuple[socket.socket, Watched]) -> None:
    """A look that finds half a frame leaves the rest to the long way."""
    ours, sock = ends
    link = Link(sock, Limits(SIZE))
    ours.sendall(REPLY[:5])
    assert link.receive_small(Kind.RESULT) is None
    ours.sendall(REPLY[5:])
    frame = link.receive()
    assert (frame.kind, frame.call_id, bytes(frame.body)) == (Kind.RESULT, 1, b"x")
