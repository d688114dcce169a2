"""The agent: the control link, heartbeats, signals, and the end of everything else.

PID 1 of a pod. Relays frames between the parent and the zygote and runs no code of the
app, so it answers while that code hogs the interpreter or the machine. It ends when
the parent is gone, and takes the zygote, all slots and what they started along.

Exit codes: 0 ended by its parent, 10 no parent in time, 11 refused, 12 its
parent is of another version (before there is an agent), 13 the app failed
to load, 14 parent lost, 15 zygote lost, 143 SIGTERM after draining.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress

from flame_backend.errors import LinkUnauthenticated, MalformedFrame
from flame_backend.runner.control import Control
from flame_backend.runner.processes import adopt_orphans, end_below
from flame_backend.runner.pump import Pump
from flame_backend.wire.frames import CONTROL_LIMITS, FrameDecoder, Kind, pack_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from flame_backend.runner.parent import Parent
    from flame_backend.wire.frames import Frame

EXIT_OK: Final = 0
EXIT_FAILSAFE: Final = 10
EXIT_REFUSED: Final = 11
EXIT_IMPORT: Final = 13
EXIT_PARENT_LOST: Final = 14
EXIT_ZYGOTE_LOST: Final = 15
EXIT_TERMINATED: Final = 143

HEARTBEAT_SECONDS: Final = 5.0
DEAD_SECONDS: Final = 30.0
DIAL_PAUSE_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
SHUTDOWN_SECONDS: Final = 25.0
"""Until WELCOME says how long calls may take to finish after SIGTERM."""

END_SECONDS: Final = 3.0
"""How long processes may take to go after SIGKILL; only the kernel can delay it."""

OWN_DESCRIPTORS: Final = 16
"""Twice what it holds for itself; the rest of its limit is for what slots print."""

SLOT_DESCRIPTORS: Final = 3
NO_DESCRIPTORS: Final = "its agent is at its limit of descriptors (ulimit -Hn)"

_READ_BYTES: Final = 64 * 1024


class Agent:
    """The first process of a runner."""

    def __init__(self, parent: Parent, zygote: socket.socket, zygote_pid: int) -> None:
        self._parent = parent
        self._zygote = zygote
        self._zygote_pid = zygote_pid
        self._control = Control(parent)
        self._poll = select.poll()
        self._pump = Pump(self._poll, lambda facts: self._control.send(Kind.LOG, facts))
        self._outlets: deque[int] = deque()
        self._most = -1
        self._awaited = 0
        self._exit: int | None = None
        self._welcomed = False
        self._refused = False
        self._failsafe_at = time.monotonic() + parent.failsafe
        self._guard = -1
        self._beat = 0.0
        self._oom_kills: int | None = None
        self._grace = SHUTDOWN_SECONDS
        self._terminate: tuple[float, str, int] | None = None

    def run(self) -> int:
        """Serve until the end; return the exit code."""
        wakeup, woken = socket.socketpair()
        wakeup.setblocking(False)
        woken.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        # PID 1 ignores signals without a handler.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._wakeup = wakeup
        try:
            self._poll.register(wakeup, select.POLLIN)
            self._connect()
            self._most = _all_descriptors()
            adopt_orphans()
            self._guard = self._watch_parent()
            self._poll.register(self._zygote, select.POLLIN)
            self._serve()
        finally:
            self._end_all()
            self._pump.drain()
            self._pump.close()
            signal.set_wakeup_fd(-1)
            for end in (wakeup, woken):
                end.close()
            self._control.close()
        return EXIT_PARENT_LOST if self._exit is None else self._exit

    # ------------------------------------------------------------------ start

    def _connect(self) -> None:
        """Open the control link; try again until the failsafe ends the runner."""
        attempt = 0
        while self._exit is None:
            try:
                self._control.connect()
            except LinkUnauthenticated as error:
                self._tell(str(error))
                self._exit = EXIT_REFUSED
            except OSError as error:
                self._pause(DIAL_PAUSE_SECONDS[min(attempt, 4)], str(error))
                attempt += 1
            else:
                self._poll.register(self._control, select.POLLIN)
                return

    def _pause(self, seconds: float, reason: str) -> None:
        """Wait before the next attempt; SIGTERM and the failsafe end the waiting."""
        left = self._failsafe_at - time.monotonic()
        if left <= 0 or self._parent.transport == "fd":
            what = "refused this runner" if self._refused else "cannot be reached"
            self._tell(f"the parent {what}: {reason}")
            self._exit = EXIT_REFUSED if self._refused else EXIT_FAILSAFE
            return
        self._poll.poll(min(seconds, left) * 1000 + 1)
        self._signals()
        if self._terminate is not None:
            self._exit = EXIT_TERMINATED

    def _reconnect(self) -> None:
        """The parent closed before WELCOME: refused, or too busy; it never says."""
        self._refused = True
        self._poll.unregister(self._control)
        self._control.close()
        self._pause(DIAL_PAUSE_SECONDS[-1], "it closed the connection")
        if self._exit is None:
            self._connect()

    def _watch_parent(self) -> int:
        """Watch a local parent's process: after its fork, EOF alone may never come."""
        if self._parent.transport != "fd" or not hasattr(os, "pidfd_open"):
            return -1
        try:
            guard = os.pidfd_open(self._parent.pid)
        except ProcessLookupError:
            self._exit = EXIT_PARENT_LOST
        except OSError:
            # An old kernel; EOF and silence remain.
            return -1
        else:
            self._poll.register(guard, select.POLLIN)
            return guard
        return -1

    # ------------------------------------------------------------------ loop

    def _serve(self) -> None:
        decoder = FrameDecoder(CONTROL_LIMITS)
        while self._exit is None:
            ready = {descriptor for descriptor, _ in self._poll.poll(self._wait_ms())}
            if self._wakeup.fileno() in ready:
                self._signals()
            if self._zygote.fileno() in ready:
                self._from_zygote(decoder)
            if self._control.fileno() in ready and self._exit is None:
                self._from_parent()
            if self._guard in ready:
                self._exit = EXIT_PARENT_LOST
            self._pump.serve(ready)
            if self._exit is None:
                self._clock()

    def _wait_ms(self) -> float:
        moments = [self._beat, time.monotonic() + self._pump.wait()]
        if self._welcomed:
            moments.append(self._control.heard + DEAD_SECONDS)
        if self._terminate is not None:
            moments.append(self._terminate[0])
        return max(0.0, min(moments) - time.monotonic()) * 1000 + 1

    def _clock(self) -> None:
        now = time.monotonic()
        if now >= self._beat:
            self._beat = now + HEARTBEAT_SECONDS
            if self._welcomed:
                self._control.send(Kind.PING)
        if self._control.ended:
            self._exit = EXIT_PARENT_LOST
        elif not self._welcomed and now > self._failsafe_at:
            self._tell("no parent has welcomed this runner in time")
            self._exit = EXIT_FAILSAFE
        elif self._welcomed and now >= self._control.heard + DEAD_SECONDS:
            self._exit = EXIT_PARENT_LOST
        elif self._terminate is not None and now >= self._terminate[0]:
            _, reason, code = self._terminate
            self._goodbye(reason, code)

    def _signals(self) -> None:
        try:
            numbers = self._wakeup.recv(4096)
        except BlockingIOError:
            return
        if signal.SIGCHLD in numbers:
            self._reap()
        # Ctrl-C reaches the whole group of a terminal; the parent decides about it.
        if signal.SIGTERM in numbers and self._terminate is None:
            at = time.monotonic() + self._grace
            self._terminate = (at, "terminated", EXIT_TERMINATED)
            if self._welcomed:
                self._control.send(Kind.DRAIN, {"reason": "SIGTERM"})

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._zygote_pid:
                    self._zygote_pid = -1
                    self._zygote_ended(os.waitstatus_to_exitcode(status))

    def _zygote_ended(self, code: int) -> None:
        if self._exit is not None:
            return
        if self._terminate is not None and code == EXIT_OK:
            _, reason, exit_code = self._terminate
            self._goodbye(reason, exit_code)
        else:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._goodbye(f"its zygote ended with {how}", EXIT_ZYGOTE_LOST)

    # ------------------------------------------------------------------ frames

    def _from_parent(self) -> None:
        try:
            frames = self._control.receive()
        except MalformedFrame as error:
            self._tell(str(error))
            self._exit = EXIT_PARENT_LOST
            return
        for frame in frames:
            self._obey(frame)
        if self._control.ended and self._exit is None:
            if self._welcomed or self._parent.transport == "fd":
                self._exit = EXIT_PARENT_LOST if self._welcomed else EXIT_REFUSED
            else:
                self._reconnect()

    def _obey(self, frame: Frame) -> None:
        body = bytes(frame.body)
        if frame.kind is Kind.WELCOME:
            self._welcomed = True
            facts = json.loads(body[: body.index(b"\n")])
            self._grace = float(facts["shutdown_timeout"])
            self._oom_kills = self._count_oom_kills()
        elif frame.kind is Kind.SHUTDOWN:
            # Also after SIGTERM: the pod is deleted while this is on its way.
            at = time.monotonic() + float(json.loads(body)["grace"])
            self._terminate = (at, "shutdown", EXIT_OK)
        elif frame.kind is Kind.OPEN_SLOT:
            if not self._admit(json.loads(body)):
                return
        elif frame.kind is not Kind.KILL_SLOT:
            return
        self._relay(frame.kind, body)

    def _admit(self, facts: dict[str, Any]) -> bool:
        """Tell whether there are descriptors for one more slot; else report its end."""
        given = self._control.descriptors
        # At the limit, the kernel drops those that come with a frame.
        room = bool(given) or self._parent.transport != "fd"
        # Elsewhere slots have the agent's own streams, see `is_possible`.
        if self._most >= 0 and hasattr(os, "memfd_create"):
            coming = SLOT_DESCRIPTORS * (self._awaited + 1)
            held = OWN_DESCRIPTORS + self._pump.descriptors
            room = room and held + coming <= self._most
            self._awaited += room
        if room:
            return True
        if given:
            os.close(given.popleft())
        end = {"exit_code": None, "signal": None, "detail": NO_DESCRIPTORS}
        slot = {"runner": facts["runner"], "slot": facts["slot"]}
        self._control.send(Kind.SLOT_ENDED, slot | end)
        return False

    def _relay(self, kind: Kind, body: bytes) -> None:
        data = pack_frame(kind, body)
        # A zygote that is gone is told of by its end.
        with suppress(BrokenPipeError, ConnectionResetError):
            if kind is Kind.OPEN_SLOT and self._control.descriptors:
                descriptor = self._control.descriptors.popleft()
                try:
                    socket.send_fds(self._zygote, [data], [descriptor])
                finally:
                    os.close(descriptor)
            else:
                self._zygote.sendall(data)

    def _from_zygote(self, decoder: FrameDecoder) -> None:
        try:
            data, given, _, _ = socket.recv_fds(self._zygote, _READ_BYTES, 16)
        except ConnectionResetError:
            data, given = b"", []
        for descriptor in given:
            os.set_inheritable(descriptor, False)
        self._outlets += given
        if not data:
            # Its end follows; until then this socket would be ready forever.
            self._poll.unregister(self._zygote)
            self._reap()
            return
        for frame in decoder.feed(data):
            body = bytes(frame.body)
            if frame.kind is Kind.OPEN_SLOT:
                self._open_outlet(json.loads(body))
                continue
            if frame.kind is Kind.SLOT_ENDED:
                facts = json.loads(body)
                self._pump.drain((facts["runner"], facts["slot"]))
                body = json.dumps(facts | {"detail": self._detail(facts)}).encode()
            self._control.send_frame(frame.kind, body)
            if frame.kind is Kind.FAILED:
                # The class alone: who may read a pod's status may not read its log.
                self._tell(f"the app failed to load: {_class_named(body)}")
                self._exit = EXIT_IMPORT

    def _detail(self, facts: dict[str, Any]) -> str:
        """Say what the kernel tells of a slot's end: was it out of memory?

        Where cgroups are of version 1 its killer takes one process of the container,
        and nobody but this process can see why.
        """
        if facts["signal"] != signal.SIGKILL:
            return ""
        before, self._oom_kills = self._oom_kills, self._count_oom_kills()
        if before is None or self._oom_kills is None or self._oom_kills <= before:
            return ""
        return "OOMKilled: the container reached its memory limit"

    def _count_oom_kills(self) -> int | None:
        if self._parent.transport == "fd":
            # A process' cgroup holds others as well.
            return None
        from flame_backend.runner.memory import out_of_memory_kills

        return out_of_memory_kills()

    def _open_outlet(self, facts: dict[str, Any]) -> None:
        """Read what a new slot prints; its descriptors came with the frame."""
        self._awaited -= 1
        out, err, cell = (self._outlets.popleft() for _ in range(SLOT_DESCRIPTORS))
        self._pump.add(facts["runner"], facts["slot"], [out, err], cell)

    def _goodbye(self, reason: str, code: int) -> None:
        self._control.send(Kind.GOODBYE, {"reason": reason})
        self._exit = code

    # ------------------------------------------------------------------ end

    def _end_all(self) -> None:
        """End the zygote, the slots, and whatever they started.

        Orphans become this process' children, so when it has none left, nothing is.
        """
        self._zygote.close()
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            end_below(os.getpid())
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.001)
        if self._zygote_pid > 0:
            # Where there is no /proc, it has ended its slots when its socket closed.
            os.kill(self._zygote_pid, signal.SIGKILL)

    def _tell(self, text: str) -> None:
        """Leave a last word for the log and, in a pod, for its status."""
        print(f"flame_backend.runner: {text}", file=sys.stderr, flush=True)
        if self._parent.transport == "tls":
            with suppress(OSError), open("/dev/termination-log", "a") as file:  # noqa: PTH123 - as above
                file.write(text[:1024])


def _class_named(body: bytes) -> str:
    facts: dict[str, Any] = json.loads(body)
    return str(facts["reason"]).partition(":")[0][:100]


def _all_descriptors() -> int:
    """Raise the limit of this process: it has a few for each slot of many runners.

    The zygote was forked before, so the app has the limit that it was given.

    Returns:
        The limit, -1 for none.
    """
    import resource  # not before HELLO

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return -1 if limit == resource.RLIM_INFINITY else limit
