"""The zygote: loads the app once, forks a slot when asked, and reports its end.

Forked from the agent before any TLS or thread exists. One loop, no threads; a fork
would not take along what preloading leaves running, so slots start afresh then, as the
zygote itself does when modules that it loaded have changed on disk.
"""

from __future__ import annotations

import gc
import json
import math
import os
import select
import signal
import socket
import sys
import time
import warnings
from collections import deque
from contextlib import suppress

from flame_backend.runner.children import Child, Children
from flame_backend.runner.fresh import Origin, replace_process, spawn_slot
from flame_backend.runner.output import Outlet, is_possible, running
from flame_backend.runner.processes import die_with, threads_left
from flame_backend.runner.stamps import Stamps
from flame_backend.wire.frames import WELCOME_LIMITS, FrameDecoder, Kind, pack_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, NoReturn

    from flame_backend.runner.parent import Parent

LONGEST_SECONDS: Final = 3600.0
"""The longest sleep: a grace period may be endless, poll's time is not."""

CODEC_SECONDS: Final = 0.05
"""After the first slot was forked: when the codec is loaded, for all later ones."""

EXIT_OK: Final = 0
EXIT_BROKEN: Final = 70


def run_zygote(agent: socket.socket, parent: Parent, agent_pid: int) -> NoReturn:
    """Serve the agent until it is gone; never returns."""
    origin = Origin(parent, b"", dict(os.environ))
    _run(agent, origin, agent_pid, Zygote.serve)


def resume_zygote(origin: Origin, facts: dict[str, Any]) -> NoReturn:
    """Go on in a fresh interpreter, in the same process; never returns."""
    agent = socket.socket(fileno=facts["agent"])
    agent.set_inheritable(False)
    _run(agent, origin, facts["agent_pid"], lambda zygote: zygote.resume(facts))


def _run(
    agent: socket.socket,
    origin: Origin,
    agent_pid: int,
    serve: Callable[[Zygote], int],
) -> NoReturn:
    code = EXIT_BROKEN
    try:
        die_with(agent_pid)
        # Kept until the process is gone: nothing of it is to be collected on the way.
        zygote = Zygote(agent, origin, agent_pid)
        code = serve(zygote)
    except BaseException:  # noqa: BLE001 - the last frame of this process
        _print_error()
    os._exit(code)


class Zygote:
    """The loop."""

    def __init__(self, agent: socket.socket, origin: Origin, agent_pid: int) -> None:
        self._agent = agent
        self._origin = origin
        self._agent_pid = agent_pid
        self._children = Children(agent_pid)
        self._decoder = FrameDecoder(WELCOME_LIMITS)
        self._frames: deque[tuple[int, bytes]] = deque()
        self._descriptors: deque[int] = deque()
        self._setup: dict[str, Any] = {}
        self._stamps = Stamps()
        self._forks = True
        self._codec_at = math.inf
        self._closing = False
        self._pid = os.getpid()
        self._woken, self._wakeup = socket.socketpair()

    def serve(self) -> int:
        """Obey frames and bury slots until the agent is gone; return the exit code."""
        for end in (self._woken, self._wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Loaded while the agent still shakes hands with the parent.
        _load_slot_modules(self._origin.parent)
        poll = select.poll()
        poll.register(self._agent, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while not (self._closing and not self._children):
            self._bury()
            self._children.kill_late()
            if time.monotonic() >= self._codec_at:
                self._load_codec()
            while self._frames:
                self._obey(*self._frames.popleft())
            ready = {descriptor for descriptor, _ in poll.poll(self._wait_ms())}
            if self._woken.fileno() in ready:
                self._woken.recv(4096)
            if self._agent.fileno() in ready and not self._read():
                break
        self._children.kill_all()
        return EXIT_OK

    def resume(self, facts: dict[str, Any]) -> int:
        """Serve with the slots, and what has yet to be done, of the program before."""
        self._children.learn(facts["slots"])
        for descriptor in facts["descriptors"]:
            os.set_inheritable(descriptor, False)
        self._descriptors += facts["descriptors"]
        self._frames += facts["frames"]
        if self._load():
            return self.serve()
        # The agent ends what is left here, once it has read why.
        self._agent.recv(1)
        self._children.kill_all()
        return EXIT_OK

    def _read(self) -> bool:
        """Take what the agent sent; False when it is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._agent, 65536, 16)
        except ConnectionResetError:
            # The agent ended with something of ours unread.
            return False
        for descriptor in descriptors:
            # They arrive inheritable; user code starts programs.
            os.set_inheritable(descriptor, False)
        self._descriptors += descriptors
        for frame in self._decoder.feed(data):
            self._frames.append((int(frame.kind), bytes(frame.body)))
        return bool(data)

    def _wait_ms(self) -> float | None:
        moment = min(self._children.next_kill(), self._codec_at)
        if moment == math.inf:
            return None
        left = max(0.0, moment - time.monotonic())
        return min(left, LONGEST_SECONDS) * 1000 + 1

    def _obey(self, kind: int, body: bytes) -> None:
        if kind == Kind.WELCOME:
            self._origin.welcome = body
            started = time.monotonic()
            if self._load():
                phases = [["import", time.monotonic() - started]]
                self._report(Kind.READY, {"pid": os.getpid(), "phases": phases})
            return
        facts = json.loads(body)
        if kind == Kind.OPEN_SLOT:
            self._open_slot(facts, body)
        elif kind == Kind.KILL_SLOT:
            self._children.ask(facts["runner"], facts["slot"], facts["grace"])
        elif kind == Kind.SHUTDOWN:
            # Slots end when the parent closes their links; the agent ends the rest.
            self._closing = True

    # ------------------------------------------------------------------ the app

    def _load(self) -> bool:
        """Become a copy of the app; False, and told, when it does not load."""
        from flame_backend.runner.loading import failure, load_app

        # The app's own code runs as it would anywhere.
        gc.enable()
        try:
            self._setup = load_app(self._origin.welcome)
        except BaseException as error:  # noqa: BLE001 - the app's import may raise anything
            self._report(Kind.FAILED, failure(error))
            return False
        self._stamps.take()
        left = threads_left()
        if left:
            self._forks = False
            print(
                f"flame_backend.runner: preloading left threads running ({left}): "
                "slots start afresh, which takes longer, instead of being forked",
                file=sys.stderr,
                flush=True,
            )
        # What is loaded now stays: the collector of a slot need not touch its pages.
        gc.freeze()
        return True

    def _load_codec(self) -> None:
        """Load what the first slots were forked without, so that they began sooner."""
        from flame_backend.runner.slot import load_codec

        self._codec_at = math.inf
        load_codec()
        gc.freeze()

    def _mind_codec(self) -> None:
        """Have the codec loaded soon after the first fork, for all later ones.

        Slots that are forked until then load it themselves, between two calls.
        """
        from flame_backend.runner.slot import codec_is_loaded

        if self._codec_at == math.inf and not codec_is_loaded():
            self._codec_at = time.monotonic() + CODEC_SECONDS

    def _start_afresh(self, kind: int, body: bytes) -> NoReturn:
        """Load the app again, and then go on with this frame."""
        _flush()
        facts = {
            "agent": self._agent.fileno(),
            "agent_pid": self._agent_pid,
            "slots": self._children.told(),
            "descriptors": list(self._descriptors),
            "frames": [(kind, body), *self._frames],
        }
        kept = [self._agent.fileno(), *self._descriptors]
        replace_process(self._origin, "zygote", facts, kept)

    # ------------------------------------------------------------------ slots

    def _open_slot(self, facts: dict[str, Any], body: bytes) -> None:
        stale = self._stamps.any_changed()
        if stale and not self._decoder.pending_bytes:
            self._start_afresh(Kind.OPEN_SLOT, body)
        descriptor = self._descriptors.popleft() if self._descriptors else -1
        outlet = self._outlet(facts)
        if self._forks and not stale:
            self._mind_codec()
            pid = self._fork(facts, descriptor, outlet)
        else:
            given = outlet.given() if outlet else []
            pid = spawn_slot(self._origin, facts, descriptor, given)
        # Before the next fork: a copy in a sibling would keep the link open.
        if descriptor >= 0:
            os.close(descriptor)
        if outlet:
            outlet.close()
        self._children.add(pid, Child(facts["runner"], facts["slot"]))

    def _outlet(self, facts: dict[str, Any]) -> Outlet | None:
        """Make what a slot prints into, and give the agent its end."""
        if not is_possible():
            return None
        outlet = Outlet()
        told = {"runner": facts["runner"], "slot": facts["slot"]}
        data = pack_frame(Kind.OPEN_SLOT, json.dumps(told).encode())
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._agent, [data], [*outlet.reads, outlet.cell])
        return outlet

    def _fork(
        self, facts: dict[str, Any], descriptor: int, outlet: Outlet | None
    ) -> int:
        _flush()
        with warnings.catch_warnings():
            # Threads of libraries that end them for a fork (BLAS) are no reason.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._become_slot(facts, descriptor, outlet)
        with suppress(OSError):
            os.setpgid(pid, pid)
        return pid

    def _become_slot(
        self, facts: dict[str, Any], descriptor: int, outlet: Outlet | None
    ) -> NoReturn:
        code = EXIT_BROKEN
        try:
            die_with(self._pid)
            with suppress(OSError):
                os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for sock in (self._agent, self._woken, self._wakeup):
                sock.close()
            if outlet:
                for read in outlet.reads:
                    os.close(read)
                running.attach(outlet.given())
            from flame_backend.runner.slot import run_slot

            code = run_slot(self._origin, self._setup, facts, descriptor, self._stamps)
        except BaseException:  # noqa: BLE001 - nothing may return into the zygote's loop
            _print_error()
        finally:
            _flush()
            os._exit(code)

    def _bury(self) -> None:
        """Report slots that ended."""
        for child, code in self._children.bury():
            self._report(
                Kind.SLOT_ENDED,
                {
                    "runner": child.runner,
                    "slot": child.slot,
                    "exit_code": code if code >= 0 else None,
                    "signal": -code if code < 0 else None,
                },
            )

    def _report(self, kind: Kind, facts: dict[str, Any]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._agent.sendall(pack_frame(kind, json.dumps(facts).encode()))


def _load_slot_modules(parent: Parent) -> None:
    import flame_backend.runner.slot
    import flame_backend.wire.functions  # noqa: F401 - loaded for the forks

    if parent.transport == "tls":
        # The module, no context and no connection: those are made after the fork.
        import ssl  # noqa: F401 - as above


def _print_error() -> None:
    import traceback

    traceback.print_exc()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # User code may have closed them, or replaced them by anything.
        with suppress(Exception):
            stream.flush()
