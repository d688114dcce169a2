"""The parent's side of all control links of one pool: one thread, nothing shared.

Backends bring authenticated sockets; the hub welcomes the agent behind each, beats
hearts, opens and kills slots, and tells what happened. Control sockets are touched by
the hub's thread only; other threads leave it commands. Shared by local processes and
pods, which differ in how a slot's link comes about: a descriptor passed over the
control link, or a connection that opens with the slot's ticket.

An agent speaks of slots that were opened through it and of nothing else; whatever is
wrong with what it says costs it its link.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import time
from typing import TYPE_CHECKING, Final, Protocol

from flame_backend.backends.base import KILL_GRACE_SECONDS, SlotEnd
from flame_backend.backends.control_link import ControlLink
from flame_backend.backends.greetings import Greetings
from flame_backend.backends.loop import READ, WRITE, Loop
from flame_backend.backends.output import Output
from flame_backend.backends.tickets import TICKET_SECONDS, Tickets
from flame_backend.backends.welcome import version_skew, welcome_body
from flame_backend.errors import LinkClosed, MalformedFrame
from flame_backend.wire.frames import SEGMENT_COUNT, Kind, Limits, pack_frame
from flame_backend.wire.link import Link

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from flame_backend.backends.base import PoolSpec
    from flame_backend.backends.control_link import Report

HEARTBEAT_SECONDS: Final = 5.0
SUSPECT_SECONDS: Final = 15.0
DEAD_SECONDS: Final = 30.0
SHORTAGE_SECONDS: Final = 1.0
"""How long a slot for which this process has no descriptor takes to fail: others may
close theirs meanwhile."""

READS_AT_ONCE: Final = 8
"""Then it is the turn of other links, moments and steps."""


class Events(Protocol):
    """What a backend hears from its hub; called in the hub's thread."""

    def agent_ready(self, agent: str, phases: list[tuple[str, float]]) -> None:
        """The app is loaded; slots may be opened."""

    def agent_failed(self, agent: str, phase: str, reason: str, log: str) -> None:
        """The app did not load."""

    def agent_draining(self, agent: str, reason: str) -> None:
        """The agent was told to end; calls that run may finish."""

    def agent_silent(self, agent: str, *, silent: bool) -> None:
        """Three heartbeats have not come; False: the agent speaks again."""

    def agent_gone(self, agent: str, reason: str, *, expected: bool) -> None:
        """The control link ended; expected when the agent had said why."""

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """A slot presented its ticket."""

    def slot_ended(self, end: SlotEnd) -> None:
        """A slot's process ended."""


class Hub:
    """All control links of one pool."""

    def __init__(self, spec: PoolSpec, events: Events) -> None:
        self._events = events
        self._logger = logging.getLogger(f"flame_backend.pool.{spec.name}")
        self._welcome = pack_frame(Kind.WELCOME, welcome_body(spec))
        self._agents: dict[str, ControlLink] = {}
        self._tickets = Tickets()
        self.output = Output(spec.name)
        self._beating = False
        self.slot_limits = Limits(
            spec.max_result, SEGMENT_COUNT, max(spec.max_payload, spec.max_result)
        )
        self._loop = Loop(f"flame-hub-{spec.name}", self._end)
        self._greetings = Greetings(self._loop, self._tickets, self._greeted)
        self._loop.start()

    # ------------------------------------------------------------------ commands

    def adopt(
        self, agent: str, sock: socket.socket, *, passes: bool, process: int = -1
    ) -> None:
        """Take over the socket of an agent that proved who it is.

        Args:
            agent: Its name in all events.
            sock: Its control link; touched by the hub only from now on.
            passes: Slots get their descriptors through this socket.
            process: A pidfd of the agent, or -1: its end is seen even while some
                forked process keeps a copy of the link open. The hub closes it.
        """
        link = ControlLink(agent, sock, process, passes=passes)
        self._loop.do(lambda: self._adopt(link))

    def open_slot(self, agent: str, runner: str, slot: int) -> None:
        """Have the agent start a slot."""
        self._loop.do(lambda: self._open_slot(agent, runner, slot))

    def kill_slot(
        self, agent: str, runner: str, slot: int, grace: float = KILL_GRACE_SECONDS
    ) -> None:
        """Have the agent end a slot: SIGTERM, SIGKILL after a grace period."""
        self._loop.do(lambda: self._kill_slot(agent, runner, slot, grace))

    def shut_down(self, agent: str, grace: float) -> None:
        """Have the agent end with its last slot, after a grace period at the latest."""
        body = json.dumps({"grace": grace}).encode()
        self._loop.do(lambda: self._tell(agent, pack_frame(Kind.SHUTDOWN, body)))

    def drop(self, agent: str) -> None:
        """Close an agent's control link, which ends its runner."""
        self._loop.do(lambda: self._drop(agent))

    def slot_connected(self, ticket: bytes, sock: socket.socket) -> bool:
        """Take over the connection of a slot; False, and nothing done, for a stranger.

        Args:
            ticket: What its first frame held.
            sock: Blocking; everything behind that frame is still unread.
        """
        claimed = self._tickets.claim(ticket, time.monotonic())
        if claimed is None:
            return False
        link = Link(sock, self.slot_limits)
        self._loop.do(lambda: self._slot_opened(*claimed, link))
        return True

    def after(self, seconds: float, step: Callable[[], None]) -> None:
        """Run a step in the hub's thread, later; it checks whether it still is due."""
        self._loop.after(seconds, step)

    def close(self) -> None:
        """Close all control links and end the thread; agents end by themselves."""
        self._loop.close()

    def after_fork(self) -> None:
        """In a forked child: close the copies, and disturb nothing of the parent's.

        Closed, not shut down: a TLS farewell would be a record under the parent's keys.
        """
        self._loop.after_fork()
        for link in self._agents.values():
            link.close()
        self._greetings.after_fork()

    # ------------------------------------------------------------------ links

    def _adopt(self, link: ControlLink) -> None:
        if self._loop.closing:
            link.close()
            return
        self._agents[link.name] = link
        link.sock.setblocking(False)
        self._loop.watch(link.sock, READ, lambda mask: self._serve(link, mask))
        if link.process >= 0:
            self._loop.watch(link.process, READ, lambda _: self._process_ended(link))
        self._tell(link.name, self._welcome)
        if not self._beating:
            self._beating = True
            self._loop.after(HEARTBEAT_SECONDS, self._beat)
        # TLS may hold bytes already that no selector will announce.
        self._serve(link, READ)

    def _beat(self) -> None:
        if not self._agents:
            self._beating = False
            return
        for link in list(self._agents.values()):
            self._listen(link)
            self._tell(link.name, pack_frame(Kind.PING))
        self._loop.after(HEARTBEAT_SECONDS, self._beat)

    def _listen(self, link: ControlLink) -> None:
        """Judge how long an agent has been silent, now and before the next beat."""
        if self._agents.get(link.name) is not link:
            return
        silent = time.monotonic() - link.heard
        if silent >= DEAD_SECONDS:
            self._lose(link, f"silent for {DEAD_SECONDS:g} s")
            return
        if silent >= SUSPECT_SECONDS and not link.suspected:
            self._logger.warning("%s: silent for %.0f s", link.name, silent)
            link.suspected = True
            self._events.agent_silent(link.name, silent=True)
        for limit in (SUSPECT_SECONDS, DEAD_SECONDS):
            if 0 < limit - silent < HEARTBEAT_SECONDS:
                self._loop.after(limit - silent, lambda: self._listen(link))

    def _trust(self, link: ControlLink) -> None:
        self._logger.warning("%s: speaks again", link.name)
        link.suspected = False
        self._events.agent_silent(link.name, silent=False)

    def _serve(self, link: ControlLink, mask: int) -> None:
        if mask & WRITE:
            self._send(link)
        if not mask & READ:
            return
        if not self._read(link):
            return
        pause = link.overdrawn()
        if pause:
            link.paused = True
            self._loop.unwatch(link.sock)
            self._loop.after(pause, lambda: self._resume(link))
        else:
            # TLS may hold what no selector announces.
            self._loop.do(lambda: self._serve(link, READ))

    def _read(self, link: ControlLink) -> bool:
        """Hear what has arrived; False when that was all, and no more than may be."""
        for _ in range(READS_AT_ONCE):
            if self._agents.get(link.name) is not link or link.paused:
                return False
            try:
                reports = link.read()
                if link.suspected:
                    self._trust(link)
                for report in reports:
                    self._hear(link, report)
            except (BlockingIOError, ssl.SSLWantReadError):
                return bool(link.overdrawn())
            except LinkClosed as error:
                self._lose(link, str(error))
            except (OSError, MalformedFrame) as error:
                self._lose(link, f"the control link broke ({error})")
        return True

    def _resume(self, link: ControlLink) -> None:
        if self._agents.get(link.name) is link:
            link.paused = False
            self._loop.watch(link.sock, READ, lambda mask: self._serve(link, mask))
            self._send(link)
            self._serve(link, READ)

    def _process_ended(self, link: ControlLink) -> None:
        self._serve(link, READ)  # its last words
        if link.name in self._agents:
            self._lose(link, "its process ended")

    def _hear(self, link: ControlLink, report: Report) -> None:
        """Pass on what an agent said."""
        kind, facts, events = report.kind, report.facts, self._events
        if kind is Kind.HELLO:
            self._judge_hello(link, facts[0])
        elif kind is Kind.READY:
            if link.ready:
                msg = "a second READY"
                raise MalformedFrame(msg)
            link.ready = True
            events.agent_ready(link.name, *facts)
        elif kind is Kind.FAILED:
            link.expected = True
            events.agent_failed(link.name, *facts)
        elif kind is Kind.DRAIN:
            events.agent_draining(link.name, *facts)
        elif kind is Kind.LOG:
            runner, slot, call, text = facts
            # What a program prints after the end of its slot is still told.
            known = (runner, slot) in link.slots
            self.output.take(runner if known else link.name, call, text)
        elif kind is Kind.GOODBYE:
            link.expected, link.farewell = True, facts[0]
        else:
            self._slot_ended(link, *facts)

    def _judge_hello(self, link: ControlLink, facts: dict[str, object]) -> None:
        if not link.passes:
            # The listener has read and judged it; a second one is an attack.
            msg = "a second HELLO"
            raise MalformedFrame(msg)
        skew = version_skew(facts)
        if skew is not None:
            link.expected = True
            self._events.agent_failed(link.name, "connect", skew, "")
            self._lose(link, skew)

    def _tell(self, name: str, data: bytes, descriptor: int = -1) -> None:
        link = self._agents.get(name)
        if link is not None:
            self._send(link, data, descriptor)
        elif descriptor >= 0:
            os.close(descriptor)

    def _send(self, link: ControlLink, data: bytes = b"", descriptor: int = -1) -> None:
        try:
            done = link.send(data, descriptor) if data else link.flush()
        except OSError as error:
            self._lose(link, f"the control link broke ({error})")
            return
        if not link.paused:
            self._loop.expect(link.sock, READ if done else READ | WRITE)

    def _drop(self, name: str) -> None:
        link = self._agents.pop(name, None)
        if link is None:
            return
        self._loop.unwatch(link.sock)
        if link.process >= 0:
            self._loop.unwatch(link.process)
        for slot in link.slots:
            self._tickets.void(*slot)
            self._greetings.end(slot)
        link.close()

    def _lose(self, link: ControlLink, reason: str) -> None:
        if link.name not in self._agents:
            return
        self._drop(link.name)
        reason = link.farewell or reason
        self._events.agent_gone(link.name, reason, expected=link.expected)

    def _end(self) -> None:
        for name in list(self._agents):
            self._drop(name)

    # ------------------------------------------------------------------ slots

    def _open_slot(self, name: str, runner: str, slot: int) -> None:
        link = self._agents.get(name)
        if link is None:
            return
        ticket = self._tickets.issue(runner, slot, time.monotonic())
        link.slots.add((runner, slot))
        self._loop.after(TICKET_SECONDS, self._expire_tickets)
        facts = {"runner": runner, "slot": slot, "ticket": ticket.hex()}
        data = pack_frame(Kind.OPEN_SLOT, json.dumps(facts).encode())
        if not link.passes:
            self._tell(name, data)
            return
        try:
            descriptor = self._greetings.begin((runner, slot))
        except OSError as error:
            why = f"this process has no descriptors left ({error})"
            end = SlotEnd(runner, slot, None, None, why)
            self._loop.after(SHORTAGE_SECONDS, lambda: self._unopened(link, end))
            return
        self._tell(name, data, descriptor)

    def _unopened(self, link: ControlLink, end: SlotEnd) -> None:
        """Report a slot that its agent was never told of."""
        known = (end.runner, end.slot) in link.slots
        if known and self._agents.get(link.name) is link:
            self._slot_ended(link, end)

    def _greeted(self, slot: tuple[str, int], sock: socket.socket) -> None:
        self._events.slot_opened(*slot, Link(sock, self.slot_limits))

    def _slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """Report a slot that dialled in, unless it has ended in the meantime."""
        if any((runner, slot) in found.slots for found in self._agents.values()):
            self._events.slot_opened(runner, slot, link)
        else:
            link.close()

    def _slot_ended(self, link: ControlLink, end: SlotEnd) -> None:
        slot = (end.runner, end.slot)
        if slot not in link.slots:
            msg = "the end of a slot that is not its own"
            raise MalformedFrame(msg)
        link.slots.remove(slot)
        self._tickets.void(*slot)
        self._greetings.end(slot)
        self._events.slot_ended(end)

    def _kill_slot(
        self, agent: str, runner: str, slot: int, grace: float = KILL_GRACE_SECONDS
    ) -> None:
        facts = {"runner": runner, "slot": slot, "grace": grace}
        self._tell(agent, pack_frame(Kind.KILL_SLOT, json.dumps(facts).encode()))

    def _expire_tickets(self) -> None:
        """Kill slots that have not come in their time; their end is told as any."""
        for slot in self._tickets.expire(time.monotonic()):
            for link in list(self._agents.values()):
                if slot in link.slots:
                    self._kill_slot(link.name, *slot)
