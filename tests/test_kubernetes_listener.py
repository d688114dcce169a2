"""The listener under attack: an honest runner is let in all the same.

Real TLS on loopback, which has as many addresses as one likes: strangers dial from
127.0.0.66, runners from 127.0.0.2 and up.
"""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import pytest

from flame_backend.backends.base import PoolSpec
from flame_backend.backends.hub import Hub
from flame_backend.backends.kubernetes.listener import Listener
from flame_backend.backends.kubernetes.peers import SPARED_PEERS, UNPROVED_PEERS, Peer
from flame_backend.backends.tickets import TICKET_SECONDS, Tickets
from flame_backend.errors import ConfigurationError, LinkUnauthenticated
from flame_backend.wire.frames import Kind, pack_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOST = "127.0.0.1"
STRANGER = "127.0.0.66"
RUNNER = "127.0.0.2"
SECRET = "right"


class Parent:
    """A listener, who was admitted, and a judge that knows one token."""

    def __init__(self, reserved: frozenset[str] = frozenset(), **options: Any) -> None:
        self.admitted: list[str] = []
        self.slots: list[bytes] = []
        self.kept: list[ssl.SSLSocket] = []
        self.judging = threading.Event()
        self.judging.set()
        self.listener = Listener(
            (HOST,),
            0,
            self,
            self._runner_connected,
            self._slot_connected,
            reserved=lambda: reserved,
            **options,
        )

    def admit(
        self, body: bytes, _addresses: frozenset[str], take: Callable[[], bool]
    ) -> tuple[str, dict[str, Any]]:
        facts = json.loads(body)
        self.judging.wait(10)
        if facts["token"] != SECRET or not take():
            msg = "not this one"
            raise LinkUnauthenticated(msg)
        return facts["runner"], facts

    def _runner_connected(self, runner: str, sock: ssl.SSLSocket, _facts: Any) -> None:
        self.admitted.append(runner)
        self.kept.append(sock)
        sock.sendall(b"welcome")

    def _slot_connected(self, ticket: bytes, sock: ssl.SSLSocket) -> None:
        self.slots.append(ticket)
        self.kept.append(sock)
        sock.sendall(b"welcome")

    def close(self) -> None:
        self.listener.close()
        for sock in self.kept:
            sock.close()
        for thread in threading.enumerate():
            if thread.name == "flame-peer":
                thread.join(10)
                assert not thread.is_alive()


@pytest.fixture
def parent() -> Iterator[Parent]:
    found = Parent()
    yield found
    found.close()


@contextmanager
def listening(**options: Any) -> Iterator[Parent]:
    """Lend a parent with other options."""
    found = Parent(**options)
    try:
        yield found
    finally:
        found.close()


def dial(parent: Parent, source: str = RUNNER) -> socket.socket:
    """Connect, and say nothing."""
    where = (HOST, parent.listener.port)
    return socket.create_connection(where, 5, source_address=(source, 0))


def shake(parent: Parent, raw: socket.socket, **options: Any) -> ssl.SSLSocket:
    """Do the handshake as an agent does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=parent.listener.certificate)
    context.set_alpn_protocols([options.get("alpn", "flame/1")])
    if "maximum" in options:
        context.maximum_version = options["maximum"]
    return context.wrap_socket(raw, server_hostname=HOST)


def hello(runner: str = "r", token: str = SECRET) -> bytes:
    body = json.dumps({"runner": runner, "token": token}).encode()
    return pack_frame(Kind.HELLO, body)


def said(parent: Parent, first: bytes, source: str = RUNNER, **options: Any) -> bytes:
    """Present a first frame; return what is answered, b"" for a link that ends."""
    with (
        suppress(OSError),
        dial(parent, source) as raw,
        shake(parent, raw, **options) as tls,
    ):
        tls.sendall(first)
        return tls.recv(100)
    return b""


def await_end(sock: socket.socket, seconds: float) -> float:
    """Return after how long a connection is ended by the other side."""
    began = time.monotonic()
    sock.settimeout(seconds)
    try:
        while sock.recv(1000):
            pass
    except TimeoutError:
        pytest.fail(f"still there after {seconds} s")
    except OSError:
        pass
    return time.monotonic() - began


# ---------------------------------------------------------------------- first frames


def test_runner_with_the_right_token_is_let_in(parent: Parent) -> None:
    """And nobody else hears a word."""
    assert b"welcome" == said(parent, hello())
    assert ["r"] == parent.admitted


FIRST: dict[str, bytes] = {
    "another token": hello(token="wrong"),
    "no JSON": pack_frame(Kind.HELLO, b"\x80\x04."),
    "a result": pack_frame(Kind.RESULT, b"x"),
    "a call": pack_frame(Kind.CALL, b"x"),
    "over 16 KiB": pack_frame(Kind.HELLO, b" " * 17_000),
    "no frame": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "two frames": hello() + hello(),
    "a frame and a half": hello() + b"\x00",
    "half a frame": hello()[:-1],
}


@pytest.mark.parametrize("name", FIRST)
def test_any_other_first_frame_ends_the_link(name: str) -> None:
    """With the same silence, and nothing changed."""
    with listening(proof_seconds=2) as parent:
        assert b"" == said(parent, FIRST[name])
        assert [] == parent.admitted
        assert b"welcome" == said(parent, hello())


@pytest.mark.parametrize(
    "options", [{"alpn": "h2"}, {"maximum": ssl.TLSVersion.TLSv1_2}]
)
def test_other_protocols_are_refused(parent: Parent, options: dict[str, Any]) -> None:
    """TLS 1.3 with our own protocol, nothing else."""
    assert b"" == said(parent, hello(), **options)
    assert [] == parent.admitted


def test_clear_text_is_refused(parent: Parent) -> None:
    """A HELLO without TLS ends the connection."""
    with dial(parent) as raw:
        raw.sendall(hello())
        await_end(raw, 5)
    assert [] == parent.admitted


# ---------------------------------------------------------------------- floods


def test_runner_gets_past_idle_connections(parent: Parent) -> None:
    """Rule 14: four times as many silent strangers as there is room for."""
    with ExitStack() as stack:
        for _ in range(4 * UNPROVED_PEERS):
            stack.enter_context(dial(parent, STRANGER))
        assert b"welcome" == said(parent, hello())


def test_oldest_silent_peer_gives_way(parent: Parent) -> None:
    """It, and not a newcomer; whoever stays may still prove who he is."""
    with ExitStack() as stack:
        first = stack.enter_context(dial(parent, STRANGER))
        others = [
            stack.enter_context(dial(parent, STRANGER)) for _ in range(UNPROVED_PEERS)
        ]
        assert await_end(first, 3) < 3
        with shake(parent, others[-1]) as tls:
            tls.sendall(hello())
            assert b"welcome" == tls.recv(100)


@contextmanager
def flood(parent: Parent, source: str) -> Iterator[list[int]]:
    """Have two threads dial as fast as they can, and say nothing."""
    stop = threading.Event()
    dialled = [0]

    def run() -> None:
        kept: list[socket.socket] = []
        while not stop.is_set():
            with suppress(OSError):
                kept.append(dial(parent, source))
                dialled[0] += 1
            if len(kept) > 400:
                kept.pop(0).close()
        for sock in kept:
            sock.close()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield dialled
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_runner_from_its_pods_address_gets_past_a_flood() -> None:
    """Rule 14: every single attempt, though it takes its time in between."""
    with (
        listening(reserved=frozenset({RUNNER})) as parent,
        flood(parent, STRANGER) as dialled,
    ):
        for _ in range(10):
            with dial(parent) as raw:
                before = dialled[0]
                while dialled[0] < before + 2 * UNPROVED_PEERS:
                    time.sleep(0.001)
                with shake(parent, raw) as tls:
                    tls.sendall(hello())
                    assert b"welcome" == tls.recv(100)
    assert 10 == len(parent.admitted)


def test_flood_from_a_runners_address_spares_only_a_few() -> None:
    """A compromised runner keeps no more than its share; another one is let in."""
    with (
        listening(reserved=frozenset({RUNNER, "127.0.0.3"})) as parent,
        ExitStack() as stack,
    ):
        honest = stack.enter_context(dial(parent, "127.0.0.3"))
        for _ in range(2 * UNPROVED_PEERS):
            stack.enter_context(dial(parent, RUNNER))
        with shake(parent, honest) as tls:
            tls.sendall(hello())
            assert b"welcome" == tls.recv(100)
        strangers = [
            stack.enter_context(dial(parent, STRANGER))
            for _ in range(UNPROVED_PEERS - SPARED_PEERS)
        ]
        with shake(parent, strangers[0]) as tls:
            tls.sendall(hello())
            assert b"welcome" == tls.recv(100)


def test_peer_that_is_cut_while_it_is_judged_is_not_let_in() -> None:
    """Taking it over and cutting it exclude each other."""
    with listening() as parent, ExitStack() as stack:
        parent.judging.clear()
        tls = stack.enter_context(shake(parent, stack.enter_context(dial(parent))))
        tls.sendall(hello())
        time.sleep(0.2)
        for _ in range(UNPROVED_PEERS):
            stack.enter_context(dial(parent, STRANGER))
        await_end(tls, 3)
        parent.judging.set()
        time.sleep(0.1)
        assert [] == parent.admitted


# ---------------------------------------------------------------------- slow ones

PROOF = 1.0


def drip(sock: socket.socket | ssl.SSLSocket, data: bytes) -> float:
    """Send a byte at a time until the other side ends it; return after how long."""
    began = time.monotonic()
    sock.settimeout(0.05)
    for byte in data:
        try:
            sock.sendall(bytes([byte]))
            if sock.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    else:
        pytest.fail("every byte was taken")
    return time.monotonic() - began


def test_slow_handshake_is_cut() -> None:
    """A byte now and then does not make the time longer."""
    with listening(proof_seconds=PROOF) as parent, dial(parent, STRANGER) as raw:
        # A TLS record of 16 KiB is announced, of which a byte comes now and then.
        assert drip(raw, b"\x16\x03\x01\x3f\xff" + bytes(400)) < PROOF + 2


def test_slow_first_frame_is_cut() -> None:
    """As slow a HELLO, behind a handshake in time."""
    with (
        listening(proof_seconds=PROOF) as parent,
        dial(parent, STRANGER) as raw,
        shake(parent, raw) as tls,
    ):
        head = pack_frame(Kind.HELLO, bytes(16_000))
        assert drip(tls, head[:400]) < PROOF + 2


@pytest.mark.parametrize("handshake", [False, True])
def test_silent_peer_is_cut(handshake: bool) -> None:
    """Before its handshake and behind it."""
    with listening(proof_seconds=PROOF) as parent, dial(parent, STRANGER) as raw:
        sock = shake(parent, raw) if handshake else raw
        assert await_end(sock, 5) < PROOF + 2
        sock.close()


def test_admitted_peer_is_cut_no_more() -> None:
    """Its time ends with its proof."""
    with (
        listening(proof_seconds=PROOF) as parent,
        dial(parent) as raw,
        shake(parent, raw) as tls,
    ):
        tls.sendall(hello())
        assert b"welcome" == tls.recv(100)
        time.sleep(PROOF + 1)
        parent.kept[0].sendall(b"still here")
        assert b"still here" == tls.recv(100)


# ---------------------------------------------------------------------- tickets


class Events:
    """What a hub reports; slots are all that matters here."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int]] = []

    def slot_opened(self, runner: str, slot: int, link: Any) -> None:
        self.opened.append((runner, slot))
        link.close()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def ticket_of(agent: socket.socket) -> bytes:
    """Read the ticket that a hub sent to an agent."""
    seen = b""
    while b'"ticket"' not in seen or b"}" not in seen[seen.index(b'"ticket"') :]:
        seen += agent.recv(65536)
    start = seen.index(b'"ticket"')
    return bytes.fromhex(
        json.loads(b"{" + seen[start : seen.index(b"}", start) + 1])["ticket"]
    )


def test_ticket_opens_its_slot_once() -> None:
    """Rule 15: 32 bytes from the parent, for one slot; a second use opens nothing."""
    events = Events()
    hub = Hub(PoolSpec(name="t", instance="i"), events)
    ours, theirs = socket.socketpair()
    try:
        hub.adopt("r", ours, passes=False)
        hub.open_slot("r", "r", 3)
        ticket = ticket_of(theirs)
        assert 32 == len(ticket)
        ends = [socket.socketpair() for _ in range(3)]
        assert not hub.slot_connected(bytes(32), ends[0][0])
        assert hub.slot_connected(ticket, ends[1][0])
        assert not hub.slot_connected(ticket, ends[2][0])
        deadline = time.monotonic() + 5
        while not events.opened and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [("r", 3)] == events.opened
    finally:
        hub.close()
        for sock in (theirs, *(end for pair in ends for end in pair)):
            sock.close()


def test_ticket_has_its_time() -> None:
    """It is void ten seconds later, and when its slot gets another."""
    tickets = Tickets()
    late = tickets.issue("r", 0, 0.0)
    assert tickets.claim(late, TICKET_SECONDS) is None
    first = tickets.issue("r", 1, 0.0)
    second = tickets.issue("r", 1, 0.0)
    assert tickets.claim(first, 1.0) is None
    assert ("r", 1) == tickets.claim(second, 1.0)


def test_slot_presents_its_ticket_in_its_first_frame(parent: Parent) -> None:
    """Looked up by whoever gave it out, not by the judge of runners."""
    assert b"welcome" == said(parent, pack_frame(Kind.TICKET, bytes(32)))
    assert ([bytes(32)], []) == (parent.slots, parent.admitted)


# ---------------------------------------------------------------------- certificate

DAY = 24 * 3600


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing")
@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        pytest.param(0, True, id="now"),
        pytest.param(2 * DAY, True, id="+48 h"),
        pytest.param(3000 * DAY, True, id="+8 years"),
        pytest.param(-DAY / 2, True, id="-12 h"),
        pytest.param(-3 * DAY, False, id="-3 days"),
        pytest.param(3651 * DAY, False, id="+10 years"),
    ],
)
def test_certificate_is_a_pin_and_not_a_date(
    parent: Parent, tmp_path: Path, moment: float, expected: bool
) -> None:
    """Rule 16: a real handshake by a peer whose clock was moved."""
    anchor = tmp_path / "parent.pem"
    anchor.write_text(parent.listener.certificate)
    where = f"{HOST}:{parent.listener.port}"
    at = str(int(time.time() + moment))
    done = subprocess.run(
        [
            *("openssl", "s_client", "-connect", where, "-CAfile", str(anchor)),
            *("-verify_return_error", "-verify_ip", HOST, "-attime", at),
            *("-tls1_3", "-alpn", "flame/1", "-brief"),
        ],
        input=b"",
        capture_output=True,
        timeout=20,
        check=False,
    )
    text = (done.stdout + done.stderr).decode(errors="replace")
    assert expected == ("Verification: OK" in text), text


FILES_WRITTEN = """\
import os, sys
from flame_backend.backends.kubernetes.pin import listener_identity

seen = []
def hook(event, arguments):
    if event == "open" and arguments[2] & os.O_ACCMODE != os.O_RDONLY:
        seen.append(arguments[0])
sys.addaudithook(hook)
listener_identity(("127.0.0.1",))
print(seen and all(type(where) is int for where in seen))
"""


def test_key_of_the_certificate_is_written_to_no_file() -> None:
    """What is written goes to a descriptor of memory, which has no name."""
    done = subprocess.run(
        [sys.executable, "-c", FILES_WRITTEN],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "True\n" == done.stdout


def test_certificate_names_the_address_and_is_no_authority(parent: Parent) -> None:
    """Another address than the parent's is refused by the runner's own check."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=parent.listener.certificate)
    with dial(parent) as raw, pytest.raises(ssl.SSLCertVerificationError):
        context.wrap_socket(raw, server_hostname="127.0.0.9")
    other = Parent()
    try:
        with dial(other) as raw, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(raw, server_hostname=HOST)
    finally:
        other.close()


# ---------------------------------------------------------------------- ports, end


def listener_at(ports: int | range) -> Listener:
    return Listener((HOST,), ports, Events(), print, print)  # type: ignore[arg-type]


def test_several_processes_share_a_range_of_ports() -> None:
    """Each takes the first that is free; when none is, the error says so."""
    with socket.create_server((HOST, 0)) as taken:
        start = taken.getsockname()[1]
        found = [listener_at(range(start, start + 40)) for _ in range(2)]
        try:
            ports = [listener.port for listener in found]
            assert start not in ports
            assert 2 == len(set(ports))
            with pytest.raises(ConfigurationError, match=str(start)):
                listener_at(start)
        finally:
            for listener in found:
                listener.close()


def test_address_that_is_not_ours_is_said_at_once() -> None:
    """No other port is tried."""
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1"):
        Listener(("192.0.2.1",), range(20000, 30000), Events(), print, print)  # type: ignore[arg-type]


def test_closed_listener_leaves_nothing(parent: Parent) -> None:
    """Peers that were not proved are cut, its thread is gone, the port is free."""
    with dial(parent) as raw, shake(parent, dial(parent)) as tls:
        parent.listener.close()
        await_end(raw, 3)
        await_end(tls, 3)
    with pytest.raises(OSError, match="refused"):
        dial(parent)


def test_peer_that_was_taken_over_is_cut_no_more() -> None:
    """And one that was cut cannot be taken over: the first of the two counts."""
    with Server() as server:
        for cut_first in (False, True):
            peer, other = server.pair()
            if cut_first:
                peer.cut()
            assert cut_first != peer.take()
            peer.cut()
            with suppress(OSError):
                peer._sock.sendall(b"x")
            assert (b"" if cut_first else b"x") == other.recv(1)
            peer.close()
            other.close()


class Server:
    """Makes pairs of connected TCP sockets."""

    def __enter__(self) -> Self:
        self._socket = socket.create_server((HOST, 0))
        return self

    def pair(self) -> tuple[Peer, socket.socket]:
        other = socket.create_connection(self._socket.getsockname(), 5)
        return Peer(self._socket.accept()[0], HOST, 0.0), other

    def __exit__(self, *_: object) -> None:
        self._socket.close()
