"""The parent's side of all control links of one pool: one thread, nothing shared.

Backends bring authenticated sockets; the hub welcomes the agent behind each, beats
hearts, opens and kills slots, hands out their one-use tickets and tells what happened.
Control sockets are touched by the hub's thread only; other threads leave it commands.
Shared by local processes and pods, which differ in how a slot's link comes about: a
descriptor passed over the control link, or a connection that opens with the ticket.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import selectors
import socket
import ssl
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from flame_backend.errors import LinkError, MalformedFrame
from flame_backend.wire.frames import (
    CONTROL_LIMITS,
    FrameDecoder,
    Kind,
    Limits,
    pack_frame,
)
from flame_backend.wire.functions import dump_object
from flame_backend.wire.link import Link
from flame_backend.wire.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.backends.base import PoolSpec
    from flame_backend.wire.frames import Frame

HEARTBEAT_SECONDS: Final = 5.0
DEAD_SECONDS: Final = 30.0
TICKET_SECONDS: Final = 10.0
TICKET_BYTES: Final = 32
_READ_BYTES: Final = 64 * 1024
SEGMENTS: Final = 4096


class Events(Protocol):
    """What a backend hears from its hub; called in the hub's thread."""

    def agent_ready(self, agent: str, phases: list[tuple[str, float]]) -> None:
        """The app is loaded; slots may be opened."""

    def agent_failed(self, agent: str, phase: str, reason: str, log: str) -> None:
        """The app did not load."""

    def agent_gone(self, agent: str, reason: str, *, expected: bool) -> None:
        """The control link ended; expected when the agent said GOODBYE."""

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """A slot presented its ticket."""

    def slot_ended(
        self, runner: str, slot: int, exit_code: int | None, signal: int | None
    ) -> None:
        """A slot's process ended."""


class _Agent:
    """One control link."""

    __slots__ = (
        "decoder", "expected", "heard", "name", "outgoing", "passes", "sock",
    )  # fmt: skip

    def __init__(self, name: str, sock: socket.socket, *, passes: bool) -> None:
        self.name = name
        self.sock = sock
        self.passes = passes
        self.decoder = FrameDecoder(CONTROL_LIMITS)
        self.outgoing: deque[tuple[bytes, int]] = deque()
        self.heard = time.monotonic()
        self.expected = False


class Hub:
    """All control links of one pool."""

    def __init__(self, spec: PoolSpec, events: Events) -> None:
        self._spec = spec
        self._events = events
        self._welcome = pack_frame(Kind.WELCOME, welcome_body(spec))
        self._agents: dict[str, _Agent] = {}
        self._tickets: dict[bytes, tuple[str, int, float]] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._woken = socket.socketpair()
        for end in (self._wakeup, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._closing = False
        self._beat = 0.0
        self.slot_limits = Limits(
            spec.max_result, SEGMENTS, max(spec.max_payload, spec.max_result)
        )
        self._thread = threading.Thread(
            target=self._loop, name=f"flame-hub-{spec.name}", daemon=True
        )
        self._thread.start()

    # ------------------------------------------------------------------ commands

    def adopt(self, agent: str, sock: socket.socket, *, passes: bool) -> None:
        """Take over the socket of an agent that proved who it is.

        Args:
            agent: Its name in all events.
            sock: Its control link; touched by the hub only from now on.
            passes: Slots get their descriptor through this socket.
        """
        self._do(lambda: self._adopt(_Agent(agent, sock, passes=passes)))

    def open_slot(self, agent: str, runner: str, slot: int) -> None:
        """Have the agent start a slot."""
        self._do(lambda: self._open_slot(agent, runner, slot))

    def kill_slot(self, agent: str, runner: str, slot: int) -> None:
        """Have the agent end a slot."""
        body = json.dumps({"runner": runner, "slot": slot}).encode()
        self._do(lambda: self._tell(agent, pack_frame(Kind.KILL_SLOT, body)))

    def shut_down(self, agent: str, grace: float) -> None:
        """Have the agent end after a grace period."""
        body = json.dumps({"grace": grace}).encode()
        self._do(lambda: self._tell(agent, pack_frame(Kind.SHUTDOWN, body)))

    def drop(self, agent: str) -> None:
        """Close an agent's control link, which ends its runner."""
        self._do(lambda: self._drop(agent))

    def claim_ticket(self, ticket: bytes) -> tuple[str, int] | None:
        """Return runner and slot of a ticket, once, within its time."""
        found = self._tickets.pop(hashlib.sha256(ticket).digest(), None)
        if found is None or time.monotonic() > found[2]:
            return None
        return found[0], found[1]

    def close(self) -> None:
        """Close all control links and end the thread; agents end by themselves."""
        self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _do(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._wake()

    def _wake(self) -> None:
        with suppress(OSError):
            self._wakeup.send(b"\0")

    # ------------------------------------------------------------------ loop

    def _loop(self) -> None:
        while not self._closing:
            for key, mask in self._selector.select(self._wait()):
                if key.data is None:
                    with suppress(BlockingIOError):
                        self._woken.recv(4096)
                else:
                    key.data(mask)
            while self._commands:
                self._commands.popleft()()
            self._clock()
        for agent in list(self._agents):
            self._drop(agent)
        self._selector.close()
        self._wakeup.close()
        self._woken.close()

    def _wait(self) -> float | None:
        if not self._agents:
            return None
        return max(0.0, self._beat - time.monotonic())

    def _clock(self) -> None:
        now = time.monotonic()
        if now < self._beat or not self._agents:
            return
        self._beat = now + HEARTBEAT_SECONDS
        for agent in list(self._agents.values()):
            if now > agent.heard + DEAD_SECONDS:
                self._lose(agent, f"silent for {DEAD_SECONDS:g} s")
            else:
                self._tell(agent.name, pack_frame(Kind.PING))
        self._tickets = {
            key: found for key, found in self._tickets.items() if found[2] > now
        }

    def _adopt(self, agent: _Agent) -> None:
        agent.sock.setblocking(False)
        self._agents[agent.name] = agent
        self._selector.register(
            agent.sock, selectors.EVENT_READ, lambda mask: self._serve(agent, mask)
        )
        self._tell(agent.name, self._welcome)
        # TLS may hold bytes already that no selector will announce.
        self._serve(agent, selectors.EVENT_READ)

    def _serve(self, agent: _Agent, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(agent)
        if not mask & selectors.EVENT_READ or agent.name not in self._agents:
            return
        try:
            while data := agent.sock.recv(_READ_BYTES):
                agent.heard = time.monotonic()
                for frame in agent.decoder.feed(data):
                    self._hear(agent, frame)
            self._lose(agent, "the control link ended")
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except (OSError, MalformedFrame, ValueError, KeyError, TypeError) as error:
            self._lose(agent, f"the control link broke ({clean(str(error), 200)})")

    def _hear(self, agent: _Agent, frame: Frame) -> None:
        if frame.kind is Kind.PING:
            return
        facts = json.loads(bytes(frame.body))
        if frame.kind is Kind.HELLO and agent.passes:
            skew = version_skew(facts)
            if skew is not None:
                agent.expected = True
                self._events.agent_failed(agent.name, "connect", skew, "")
                self._drop(agent.name)
        elif frame.kind is Kind.READY:
            phases = [(clean(name, 32), float(took)) for name, took in facts["phases"]]
            self._events.agent_ready(agent.name, phases)
        elif frame.kind is Kind.FAILED:
            agent.expected = True
            self._events.agent_failed(
                agent.name,
                clean(facts["phase"], 32),
                clean(facts["reason"], 1024),
                clean(facts["traceback"], 64 * 1024),
            )
        elif frame.kind is Kind.SLOT_ENDED:
            self._events.slot_ended(
                clean(facts["runner"], 253),
                int(facts["slot"]),
                _number(facts["exit_code"]),
                _number(facts["signal"]),
            )
        elif frame.kind is Kind.GOODBYE:
            agent.expected = True
        elif frame.kind is not Kind.DRAIN:
            msg = f"{frame.kind.name} on a control link"
            raise MalformedFrame(msg)

    # ------------------------------------------------------------------ sending

    def _tell(self, name: str, data: bytes, descriptor: int = -1) -> None:
        agent = self._agents.get(name)
        if agent is None:
            if descriptor >= 0:
                os.close(descriptor)
            return
        agent.outgoing.append((data, descriptor))
        self._flush(agent)

    def _flush(self, agent: _Agent) -> None:
        try:
            while agent.outgoing:
                data, descriptor = agent.outgoing[0]
                if descriptor >= 0:
                    sent = socket.send_fds(agent.sock, [data], [descriptor])
                    os.close(descriptor)
                else:
                    sent = agent.sock.send(data)
                agent.outgoing.popleft()
                if sent < len(data):
                    agent.outgoing.appendleft((data[sent:], -1))
            events = selectors.EVENT_READ
        except (BlockingIOError, ssl.SSLWantWriteError):
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
        except OSError as error:
            self._lose(agent, f"the control link broke ({error})")
            return
        key = self._selector.get_key(agent.sock)
        if key.events != events:
            self._selector.modify(agent.sock, events, key.data)

    def _drop(self, name: str) -> None:
        agent = self._agents.pop(name, None)
        if agent is None:
            return
        self._selector.unregister(agent.sock)
        for _, descriptor in agent.outgoing:
            if descriptor >= 0:
                os.close(descriptor)
        with suppress(OSError):
            agent.sock.close()

    def _lose(self, agent: _Agent, reason: str) -> None:
        self._drop(agent.name)
        self._events.agent_gone(agent.name, reason, expected=agent.expected)

    # ------------------------------------------------------------------ slots

    def _open_slot(self, agent: str, runner: str, slot: int) -> None:
        found = self._agents.get(agent)
        if found is None:
            return
        ticket = secrets.token_bytes(TICKET_BYTES)
        digest = hashlib.sha256(ticket).digest()
        self._tickets[digest] = (runner, slot, time.monotonic() + TICKET_SECONDS)
        facts = {"runner": runner, "slot": slot, "ticket": ticket.hex()}
        data = pack_frame(Kind.OPEN_SLOT, json.dumps(facts).encode())
        if not found.passes:
            self._tell(agent, data)
            return
        ours, theirs = socket.socketpair()
        link = Link(ours, self.slot_limits)
        self._selector.register(
            ours, selectors.EVENT_READ, lambda _: self._greet(runner, slot, link)
        )
        self._tell(agent, data, theirs.detach())

    def _greet(self, runner: str, slot: int, link: Link) -> None:
        """Read the ticket a new slot opens its link with."""
        self._selector.unregister(link.sock)
        try:
            frame = link.receive()
            claimed = self.claim_ticket(bytes(frame.body))
        except LinkError:
            claimed = None
        if claimed == (runner, slot):
            self._events.slot_opened(runner, slot, link)
        else:
            link.close()


def welcome_body(spec: PoolSpec) -> bytes:
    """Return the setup of a runner: paths as JSON, a newline, the rest pickled.

    The paths come first as the pickle may need them to import what it names.

    Raises:
        NotSerializable: result_types cannot be sent.
    """
    try:
        cwd = os.getcwd()  # noqa: PTH109 - text is what travels
    except OSError:
        cwd = ""
    # "" is the working folder, as an interactive Python has it.
    places = [path or cwd for path in sys.path]
    paths = {"sys_path": [path for path in places if path], "cwd": cwd}
    setup: dict[str, Any] = {
        "preload": spec.preload,
        "results": spec.results,
        "result_types": spec.result_types,
        "max_result": spec.max_result,
        "max_payload": spec.max_payload,
    }
    return json.dumps(paths).encode() + b"\n" + dump_object(setup)


def version_skew(hello: dict[str, Any]) -> str | None:
    """Say how a runner's HELLO differs from this process, None when it does not.

    Functions pickled by value hold bytecode: another minor version of Python loads
    them and then crashes.
    """
    major, minor = sys.version_info[:2]
    ours = f"{sys.implementation.name}-{major}.{minor}"
    theirs = clean(hello.get("python"), 64)
    if theirs == ours:
        return None
    return f"the runner is {theirs}, this process is {ours}; use the same image"


def _number(value: object) -> int | None:
    if value is None or type(value) is int:
        return value
    msg = "a number that is none"
    raise MalformedFrame(msg)
