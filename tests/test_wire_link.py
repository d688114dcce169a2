"""Links over real socket pairs: whole frames, or a typed end, wherever they are cut."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from flame_backend.errors import LinkClosed, LinkError, MalformedFrame
from flame_backend.wire.frames import (
    HEADER,
    HEADER_BYTES,
    Frame,
    FrameDecoder,
    Kind,
    Limits,
    pack_head,
)
from flame_backend.wire.link import READ_BYTES, SMALL_BYTES, STEP_BYTES, Body, Link

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMITS = Limits(8 * 1024 * 1024, 4, 16 * 1024 * 1024)

Pair = tuple[socket.socket, Link]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Return a bare socket and the link at its other end."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(None)
    link = Link(theirs, LIMITS)
    with ours:
        yield ours, link
    link.close()


@contextlib.contextmanager
def sending(sock: socket.socket, *pieces: bytes, end: bool = False) -> Iterator[None]:
    """Send pieces from another thread, each by itself."""

    def run() -> None:
        with contextlib.suppress(OSError):
            for piece in pieces:
                sock.sendall(piece)
            if end:
                sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(10)
        assert not thread.is_alive()


def frame(body: bytes, segments: tuple[bytes, ...] = (), call: int = 7) -> bytes:
    """Return a RESULT frame's bytes."""
    head = pack_head(Kind.RESULT, call, len(body), [len(part) for part in segments])
    return head + body + b"".join(segments)


SIZES = [0, 1, READ_BYTES // 2, READ_BYTES // 2 + 1, READ_BYTES, STEP_BYTES + 1,
         3 * STEP_BYTES]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("segments", [(), (5,), (0, 100_000, STEP_BYTES + 9)], ids=str)
def test_frame_of_any_size_arrives_whole(
    size: int, segments: tuple[int, ...], pair: Pair
) -> None:
    """Below and above each buffer, and another one behind it."""
    ours, link = pair
    parts = tuple(bytes([n + 1]) * length for n, length in enumerate(segments))
    with sending(ours, frame(b"b" * size, parts) + frame(b"next")):
        found = link.receive()
        assert (b"b" * size, list(parts)) == (found.body, list(found.segments))
        assert (Kind.RESULT, 7) == (found.kind, found.call_id)
        assert type(found.body) is bytes
        assert b"next" == link.receive().body
    assert 0 == link.buffered_bytes()


def test_octets_one_by_one_are_the_same_frames(pair: Pair) -> None:
    """Reads are as short as the network makes them."""
    ours, link = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    data = frame(b"body", (b"one", b"")) + frame(b"", call=8)
    with sending(ours, *(data[n : n + 1] for n in range(len(data)))):
        first, second = link.receive(), link.receive()
    assert [b"one", b""] == list(first.segments)
    assert (b"", 8) == (second.body, second.call_id)


WHOLE = frame(b"b" * 100_000, (b"s" * 70_000, b"t" * 10))


@pytest.mark.parametrize(
    "cut",
    [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 3, HEADER_BYTES + 16,
     HEADER_BYTES + 17, 60_000, 100_000 + HEADER_BYTES + 16, 150_000, len(WHOLE) - 1],
)  # fmt: skip
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_cut_in_every_phase_is_a_closed_link(cut: int, reset: bool) -> None:
    """In header, lengths, body and segments; never a short frame."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        link = Link(theirs, LIMITS)
        ours.sendall(WHOLE[:cut])
        if reset:
            linger = struct.pack("ii", 1, 0)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        ours.close()
        with pytest.raises(LinkClosed):
            link.receive()
        link.close()


OVERSIZE = {
    "body": HEADER.pack(Kind.RESULT, 0, 0, LIMITS.body_bytes + 1, 1),
    "segments": HEADER.pack(Kind.RESULT, 0, 5, 1, 1),
    "segment": HEADER.pack(Kind.RESULT, 0, 1, 1, 1) + (2**63).to_bytes(8, "big"),
    "together": HEADER.pack(Kind.RESULT, 0, 2, 1, 1)
    + (8 * 2**20).to_bytes(8, "big") * 2,
    "kind": HEADER.pack(99, 0, 0, 0, 1),
    "flags": HEADER.pack(Kind.RESULT, 1, 0, 0, 1),
    "another protocol": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": bytes.fromhex("16030102000100") + bytes(64),
}


@pytest.mark.parametrize("data", OVERSIZE.values(), ids=OVERSIZE.keys())
def test_header_that_breaks_a_rule_is_refused_at_once(data: bytes, pair: Pair) -> None:
    """Without waiting for more, and before memory is taken."""
    ours, link = pair
    tracemalloc.start()
    try:
        ours.sendall(data)
        with pytest.raises(MalformedFrame):
            link.receive()
        assert 100_000 > tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_claimed_length_takes_no_memory_before_it_arrives(pair: Pair) -> None:
    """A peer pays for its first step, whatever its header says."""
    ours, link = pair
    tracemalloc.start()
    try:
        head = HEADER.pack(Kind.RESULT, 0, 0, LIMITS.body_bytes, 1)
        with sending(ours, head + b"x", end=True), pytest.raises(LinkClosed):
            link.receive()
        assert 3 * STEP_BYTES > tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_segments_are_no_part_of_a_call(pair: Pair) -> None:
    """A slot reads one body."""
    ours, link = pair
    ours.sendall(frame(b"x", (b"y",)))
    with pytest.raises(MalformedFrame, match="segments"):
        link.receive_call()


@pytest.mark.parametrize("size", [0, 10, READ_BYTES // 2])
def test_small_call_is_bytes(size: int, pair: Pair) -> None:
    """Read in one go."""
    ours, link = pair
    with sending(ours, frame(b"c" * size)):
        assert (Kind.RESULT, 7, b"c" * size) == link.receive_call()


def test_body_reads_its_own_octets_and_no_more(pair: Pair) -> None:
    """By read, readline and readinto; what is left is dropped by finish."""
    ours, link = pair
    body = b"ab\ncd" + bytes(range(256)) * 1000
    with sending(ours, frame(body) + frame(body) + frame(b"next")):
        _, _, found = link.receive_call()
        assert isinstance(found, Body)
        assert (b"ab\n", b"cd") == (found.readline(), found.read(2))
        target = bytearray(300_000)
        assert len(body) - 5 == found.readinto(target)
        assert body[5:] == target[: len(body) - 5]
        assert (b"", b"", 0) == (found.read(), found.readline(), found.readinto(target))
        _, _, found = link.receive_call()
        assert isinstance(found, Body)
        assert b"ab" == found.read(2)
        found.finish()
        assert b"next" == link.receive_call()[2]


def test_body_that_is_cut_is_a_closed_link(pair: Pair) -> None:
    """Whoever reads it, an unpickler too."""
    ours, link = pair
    with sending(ours, frame(bytes(200_000))[:100_000], end=True):
        _, _, found = link.receive_call()
        assert isinstance(found, Body)
        with pytest.raises(LinkClosed):
            found.read()


class Writes(socket.socket):
    """A socket that remembers its writes."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.sizes: list[int] = []

    def sendall(self, data: bytes, flags: int = 0, /) -> None:  # type: ignore[override]
        """Write and remember."""
        self.sizes.append(len(data))
        super().sendall(data, flags)


@pytest.mark.parametrize(
    ("parts", "writes"),
    [([SMALL_BYTES], 1), ([100, 200, 300], 1), ([SMALL_BYTES + 1], 2),
     ([10, 200_000, 20, 30], 3), ([], 1)],
    ids=str,
)  # fmt: skip
def test_parts_leave_in_few_writes(parts: list[int], writes: int) -> None:
    """Small ones together, large ones uncopied, and the same frame arrives."""
    ours, theirs = socket.socketpair()
    watched = Writes(ours)
    sender, receiver = Link(watched, LIMITS), Link(theirs, LIMITS)
    pieces = [bytes([n]) * size for n, size in enumerate(parts)]
    thread = threading.Thread(target=sender.send_parts, args=(Kind.CALL, 9, pieces))
    thread.start()
    found = receiver.receive()
    thread.join()
    assert (Kind.CALL, 9, b"".join(pieces)) == (found.kind, found.call_id, found.body)
    assert writes == len(watched.sizes)
    sender.close()
    receiver.close()


@pytest.mark.parametrize("segments", [[], [b"z" * 10, bytearray(70_000)]], ids=len)
@pytest.mark.parametrize("size", [0, SMALL_BYTES, SMALL_BYTES + 1])
def test_what_is_sent_is_received(size: int, segments: list[bytes], pair: Pair) -> None:
    """Over two links, with segments of any buffer."""
    ours, link = pair
    sender = Link(ours, LIMITS)
    thread = threading.Thread(
        target=sender.send, args=(Kind.RESULT, 3, b"q" * size, segments)
    )
    thread.start()
    found = link.receive()
    thread.join()
    assert b"q" * size == found.body
    assert segments == list(found.segments)


def test_sending_to_a_peer_that_is_gone_is_a_closed_link(pair: Pair) -> None:
    """By both ways of sending."""
    ours, link = pair
    ours.close()
    with pytest.raises(LinkClosed):
        link.send(Kind.CALL, 1, bytes(100_000))
    with pytest.raises(LinkClosed):
        link.send_parts(Kind.CALL, 1, [b"a", bytes(100_000)])


def test_shutdown_from_another_thread_ends_a_blocked_read(pair: Pair) -> None:
    """The one thing that another thread may do."""
    _, link = pair
    ended: list[BaseException] = []

    def read() -> None:
        try:
            link.receive()
        except LinkError as error:
            ended.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    link.shutdown()
    thread.join(5)
    assert [LinkClosed] == [type(error) for error in ended]
    link.close()
    link.close()
    link.shutdown()
    assert -1 == link.fileno()


def test_use_after_close_is_a_typed_error(pair: Pair) -> None:
    """Never an OSError of the socket."""
    _, link = pair
    link.close()
    with pytest.raises(LinkError):
        link.send(Kind.PING)
    with pytest.raises(LinkError):
        link.receive()


def test_small_frame_that_comes_alone_takes_the_short_way(pair: Pair) -> None:
    """Its call id and body, without a buffer of its own."""
    ours, link = pair
    ours.sendall(frame(b"body", call=9))
    assert (9, b"body") == link.receive_small(Kind.RESULT)
    assert not link._buffer


@pytest.mark.parametrize(
    "data",
    [
        frame(b"x" * 8192),
        frame(b"", (b"segment",)),
        frame(b"one") + frame(b"two"),
        frame(b"body")[:5],
        HEADER.pack(Kind.PROGRESS, 0, 0, 1, 7) + b"x",
    ],
    ids=["large", "segments", "two", "cut", "another kind"],
)
def test_any_other_frame_is_left_for_the_long_way(data: bytes, pair: Pair) -> None:
    """Not an octet of it is lost."""
    ours, link = pair
    with sending(ours, data, frame(b"last"), end=True):
        assert link.receive_small(Kind.RESULT) is None
        decoder, frames = FrameDecoder(LIMITS), list[Frame]()
        with contextlib.suppress(LinkClosed, MalformedFrame):
            while True:
                frames.append(link.receive())
    with contextlib.suppress(MalformedFrame):
        expected = decoder.feed(data + frame(b"last"))
        assert [(f.kind, bytes(f.body)) for f in expected] == [
            (f.kind, bytes(f.body)) for f in frames
        ]


def test_small_frame_over_the_limit_is_refused(pair: Pair) -> None:
    """The short way knows the limit of a body."""
    ours, link = pair
    link.limits = Limits(3)
    ours.sendall(frame(b"four"))
    assert link.receive_small(Kind.RESULT) is None
    with pytest.raises(MalformedFrame):
        link.receive()


def test_buffer_is_given_back_when_nothing_is_in_it(pair: Pair) -> None:
    """And not before."""
    ours, link = pair
    ours.sendall(frame(b"one") + frame(b"two"))
    assert link.receive_small(Kind.RESULT) is None
    assert b"one" == link.receive().body
    link.release()
    assert b"two" == link.receive().body
    link.release()
    assert not link._buffer
