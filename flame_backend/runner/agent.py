"""The agent: the control link, heartbeats, signals, and the end of everything else.

PID 1 of a pod. Relays frames between the parent and the zygote and runs no code of the
app, so it answers while that code hogs the interpreter or the machine. It ends when
the parent is gone, and takes the zygote, all slots and what they started along.

Exit codes: 0 ended by its parent, 10 no parent in time, 11 refused, 13 the app failed
to load, 14 parent lost, 143 SIGTERM after draining.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from flame_backend.errors import LinkUnauthenticated, MalformedFrame
from flame_backend.wire.frames import (
    CONTROL_LIMITS,
    FrameDecoder,
    Kind,
    Limits,
    pack_frame,
)

if TYPE_CHECKING:
    from flame_backend.runner.parent import Parent
    from flame_backend.wire.frames import Frame

EXIT_OK: Final = 0
EXIT_FAILSAFE: Final = 10
EXIT_REFUSED: Final = 11
EXIT_IMPORT: Final = 13
EXIT_PARENT_LOST: Final = 14
EXIT_TERMINATED: Final = 143

HEARTBEAT_SECONDS: Final = 5.0
DEAD_SECONDS: Final = 30.0
DIAL_PAUSE_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

# WELCOME carries the pool's setup, classes of the main script included.
_WELCOME_LIMITS: Final = Limits(64 * 1024 * 1024)
_READ_BYTES: Final = 64 * 1024


class Agent:
    """The first process of a runner."""

    def __init__(self, parent: Parent, zygote: socket.socket, zygote_pid: int) -> None:
        self._parent = parent
        self._zygote = zygote
        self._zygote_pid = zygote_pid
        self._control: Any = None
        self._descriptors: list[int] = []
        self._exit: int | None = None
        self._welcomed = False
        self._heard = time.monotonic()
        self._beat = 0.0
        self._terminate_at: float | None = None

    def run(self) -> int:
        """Serve until the end; return the exit code."""
        wakeup, woken = socket.socketpair()
        wakeup.setblocking(False)
        woken.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        # PID 1 ignores signals without a handler.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        try:
            code = self._connect()
            if code is None:
                code = self._serve(wakeup)
        finally:
            self._end_all()
        return code

    # ------------------------------------------------------------------ start

    def _connect(self) -> int | None:
        """Open the control link and say HELLO; an exit code means it failed."""
        if self._parent.transport == "fd":
            self._control = socket.socket(fileno=self._parent.fd)
            self._control.set_inheritable(False)
        else:
            code = self._dial()
            if code is not None:
                return code
        self._control.sendall(pack_frame(Kind.HELLO, self._hello()))
        self._control.setblocking(False)
        return None

    def _dial(self) -> int | None:
        from flame_backend.runner.dial import dial

        deadline = time.monotonic() + self._parent.failsafe
        for attempt in range(10_000):
            try:
                self._control = dial(self._parent)
            except LinkUnauthenticated as error:
                self._tell(str(error))
                return EXIT_REFUSED
            except OSError as error:
                if time.monotonic() > deadline:
                    self._tell(f"the parent cannot be reached: {error}")
                    return EXIT_FAILSAFE
                time.sleep(DIAL_PAUSE_SECONDS[min(attempt, 4)])
            else:
                return None
        return EXIT_FAILSAFE

    def _hello(self) -> bytes:
        facts = {
            "v": 1,
            "runner": self._parent.runner,
            "python": f"{sys.implementation.name}-"
            f"{sys.version_info[0]}.{sys.version_info[1]}",
            "pid": os.getpid(),
        }
        if self._parent.token_path:
            with open(self._parent.token_path, encoding="ascii") as file:  # noqa: PTH123 - pathlib is not loaded before HELLO
                facts["token"] = file.read().strip()
        return json.dumps(facts).encode()

    # ------------------------------------------------------------------ loop

    def _serve(self, wakeup: socket.socket) -> int:
        poll = select.poll()
        for descriptor in (self._control, self._zygote, wakeup):
            poll.register(descriptor, select.POLLIN)
        guard = self._watch_parent(poll)
        control = FrameDecoder(_WELCOME_LIMITS)
        zygote = FrameDecoder(CONTROL_LIMITS)
        while self._exit is None:
            ready = {descriptor for descriptor, _ in poll.poll(self._wait_ms())}
            if wakeup.fileno() in ready:
                self._signals(wakeup.recv(4096))
            if self._zygote.fileno() in ready:
                self._from_zygote(zygote)
            if self._control.fileno() in ready and self._exit is None:
                self._from_parent(control)
            if guard in ready:
                self._exit = EXIT_PARENT_LOST
            self._clock()
        return self._exit

    def _watch_parent(self, poll: select.poll) -> int:
        """Watch a local parent's process: after its fork, EOF alone may never come."""
        if self._parent.transport != "fd" or not hasattr(os, "pidfd_open"):
            return -1
        with suppress(OSError):
            guard = os.pidfd_open(os.getppid())
            poll.register(guard, select.POLLIN)
            return guard
        return -1

    def _wait_ms(self) -> float:
        now = time.monotonic()
        moments = [self._beat, self._heard + DEAD_SECONDS]
        if self._terminate_at is not None:
            moments.append(self._terminate_at)
        return max(0.0, min(moments) - now) * 1000 + 1

    def _clock(self) -> None:
        now = time.monotonic()
        if now >= self._beat:
            self._beat = now + HEARTBEAT_SECONDS
            self._send(pack_frame(Kind.PING))
        limit = DEAD_SECONDS if self._welcomed else self._parent.failsafe
        if now > self._heard + limit:
            self._exit = EXIT_PARENT_LOST if self._welcomed else EXIT_FAILSAFE
        if self._terminate_at is not None and now >= self._terminate_at:
            self._goodbye("terminated", EXIT_TERMINATED)

    def _signals(self, numbers: bytes) -> None:
        if signal.SIGCHLD in numbers:
            self._reap()
        # Ctrl-C reaches the whole group of a terminal; the parent decides about it.
        if signal.SIGTERM in numbers and self._terminate_at is None:
            self._send(pack_frame(Kind.DRAIN, b'{"reason":"SIGTERM"}'))
            self._terminate_at = time.monotonic() + 25.0

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._zygote_pid and self._exit is None:
                    self._zygote_pid = -1
                    code = os.waitstatus_to_exitcode(status)
                    self._goodbye(f"the zygote ended with {code}", EXIT_IMPORT)

    # ------------------------------------------------------------------ frames

    def _from_parent(self, decoder: FrameDecoder) -> None:
        for data in self._read_control():
            if not data:
                self._exit = EXIT_PARENT_LOST if self._welcomed else EXIT_REFUSED
                return
            self._heard = time.monotonic()
            try:
                frames = decoder.feed(data)
            except MalformedFrame as error:
                self._tell(str(error))
                self._exit = EXIT_PARENT_LOST
                return
            for frame in frames:
                self._obey(frame)

    def _read_control(self) -> list[bytes]:
        """Read what has arrived; an empty part is the end."""
        found: list[bytes] = []
        while True:
            try:
                if self._parent.transport == "fd":
                    data, descriptors, _, _ = socket.recv_fds(
                        self._control, _READ_BYTES, 16
                    )
                    self._descriptors += descriptors
                    for descriptor in descriptors:
                        os.set_inheritable(descriptor, False)
                else:
                    data = self._control.recv(_READ_BYTES)
            except BlockingIOError:
                return found
            except OSError as error:
                # SSLWantReadError is an OSError without being a BlockingIOError.
                if type(error).__name__ == "SSLWantReadError":
                    return found
                data = b""
            found.append(data)
            if not data:
                return found

    def _obey(self, frame: Frame) -> None:
        if frame.kind is Kind.WELCOME:
            self._welcomed = True
        if frame.kind is Kind.SHUTDOWN:
            self._relay(frame)
            grace = float(json.loads(bytes(frame.body)).get("grace", 0.0))
            self._terminate_at = time.monotonic() + grace
            if grace <= 0:
                self._goodbye("shutdown", EXIT_OK)
        elif frame.kind in {Kind.WELCOME, Kind.OPEN_SLOT, Kind.KILL_SLOT}:
            self._relay(frame)

    def _relay(self, frame: Frame) -> None:
        data = pack_frame(frame.kind, bytes(frame.body))
        with suppress(BrokenPipeError):
            if frame.kind is Kind.OPEN_SLOT and self._descriptors:
                descriptor = self._descriptors.pop(0)
                socket.send_fds(self._zygote, [data], [descriptor])
                os.close(descriptor)
            else:
                self._zygote.sendall(data)

    def _from_zygote(self, decoder: FrameDecoder) -> None:
        data = self._zygote.recv(_READ_BYTES)
        if not data:
            self._reap()
            return
        for frame in decoder.feed(data):
            self._send(pack_frame(frame.kind, bytes(frame.body)))
            if frame.kind is Kind.FAILED:
                self._exit = EXIT_IMPORT

    def _send(self, data: bytes) -> None:
        """Send a control frame; frames are small and rare, so waiting is fine."""
        view = memoryview(data)
        deadline = time.monotonic() + HEARTBEAT_SECONDS
        while view and self._exit is None:
            try:
                view = view[self._control.send(view) :]
            except OSError as error:
                again = error.errno == errno.EAGAIN or "Want" in type(error).__name__
                if not again or time.monotonic() > deadline:
                    self._exit = EXIT_PARENT_LOST
                    return
                select.select([], [self._control], [], 0.1)

    def _goodbye(self, reason: str, code: int) -> None:
        self._send(pack_frame(Kind.GOODBYE, json.dumps({"reason": reason}).encode()))
        self._exit = code

    # ------------------------------------------------------------------ end

    def _end_all(self) -> None:
        """End the zygote and every process of its group."""
        self._zygote.close()
        if self._zygote_pid > 0:
            with suppress(ProcessLookupError):
                os.killpg(self._zygote_pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self._zygote_pid, 0)

    def _tell(self, text: str) -> None:
        """Leave a last word for the log and, in a pod, for its status."""
        print(f"flame_backend.runner: {text}", file=sys.stderr, flush=True)
        with suppress(OSError), open("/dev/termination-log", "a") as file:  # noqa: PTH123 - as above
            file.write(text[:1024])
