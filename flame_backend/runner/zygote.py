"""The zygote: loads the app once, forks a slot when asked, and buries slots.

Forked from the agent before any TLS or thread exists. One loop, no threads; what
preloading leaves running is the app's own. Each slot leads a process group, so that
programs which a call started end with its slot.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flame_backend.runner.processes import die_with
from flame_backend.wire.frames import FrameDecoder, Kind, Limits, pack_frame

if TYPE_CHECKING:
    from flame_backend.runner.parent import Parent

KILL_SECONDS: Final = 2.0
TRACEBACK_CHARACTERS: Final = 64 * 1024

EXIT_OK: Final = 0
EXIT_BROKEN: Final = 70

_LIMITS: Final = Limits(64 * 1024 * 1024)


def run_zygote(agent: socket.socket, parent: Parent, agent_pid: int) -> NoReturn:
    """Serve the agent until it is gone; never returns."""
    code = EXIT_BROKEN
    try:
        die_with(agent_pid)
        # Kept until the process is gone: nothing of it is to be collected on the way.
        zygote = Zygote(agent, parent)
        code = zygote.serve()
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    os._exit(code)


class _Slot:
    """One forked process."""

    __slots__ = ("kill_at", "runner", "slot")

    def __init__(self, runner: str, slot: int) -> None:
        self.runner = runner
        self.slot = slot
        self.kill_at: float | None = None


class Zygote:
    """The loop."""

    def __init__(self, agent: socket.socket, parent: Parent) -> None:
        self._agent = agent
        self._parent = parent
        self._slots: dict[int, _Slot] = {}
        self._descriptors: deque[int] = deque()
        self._setup: dict[str, Any] = {}
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
        _load_slot_modules(self._parent)
        decoder = FrameDecoder(_LIMITS)
        poll = select.poll()
        poll.register(self._agent, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while not (self._closing and not self._slots):
            ready = {descriptor for descriptor, _ in poll.poll(self._wait_ms())}
            if self._woken.fileno() in ready:
                self._woken.recv(4096)
            self._bury()
            self._kill_late()
            if self._agent.fileno() in ready and not self._read(decoder):
                break
        self._end_slots()
        return EXIT_OK

    def _read(self, decoder: FrameDecoder) -> bool:
        """Obey what the agent sent; False when it is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._agent, 65536, 16)
        except ConnectionResetError:
            # The agent ended with something of ours unread.
            return False
        for descriptor in descriptors:
            # They arrive inheritable; user code starts programs.
            os.set_inheritable(descriptor, False)
        self._descriptors += descriptors
        for frame in decoder.feed(data):
            self._obey(frame.kind, bytes(frame.body))
        return bool(data)

    def _wait_ms(self) -> float | None:
        moments = [slot.kill_at for slot in self._slots.values() if slot.kill_at]
        if not moments:
            return None
        return max(0.0, min(moments) - time.monotonic()) * 1000 + 1

    def _obey(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.WELCOME:
            self._load(body)
            return
        facts = json.loads(body)
        if kind is Kind.OPEN_SLOT:
            self._fork(facts)
        elif kind is Kind.KILL_SLOT:
            self._kill(facts["runner"], facts["slot"])
        elif kind is Kind.SHUTDOWN:
            # Slots end when the parent closes their links; the agent ends the rest.
            self._closing = True

    # ------------------------------------------------------------------ the app

    def _load(self, body: bytes) -> None:
        """Become a copy of the app: its paths, its modules, its classes."""
        started = time.monotonic()
        try:
            from flame_backend.wire.functions import load_object

            facts, _, setup = body.partition(b"\n")
            paths = json.loads(facts)
            # The app's order decides which module a name means; what only this
            # interpreter knows comes last.
            own = [path for path in sys.path if path not in paths["sys_path"]]
            sys.path[:] = paths["sys_path"] + own
            if paths["cwd"]:
                with suppress(OSError):
                    os.chdir(paths["cwd"])
            self._setup = load_object(setup)
            for module in self._setup["preload"]:
                importlib.import_module(module)
        except BaseException as error:  # noqa: BLE001 - the app's import may raise anything
            self._report(Kind.FAILED, _failure(error))
            return
        # What is loaded now stays: the collector of a slot need not touch its pages.
        gc.freeze()
        took = time.monotonic() - started
        self._report(Kind.READY, {"pid": os.getpid(), "phases": [["import", took]]})

    # ------------------------------------------------------------------ slots

    def _fork(self, facts: dict[str, Any]) -> None:
        descriptor = self._descriptors.popleft() if self._descriptors else -1
        _flush()
        with warnings.catch_warnings():
            # Preloaded libraries start threads of their own (BLAS); forking beside
            # them is what the app asked for with preload.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._become_slot(facts, descriptor)
        with suppress(OSError):
            os.setpgid(pid, pid)
        # Before the next fork: a copy in a sibling would keep the link open.
        if descriptor >= 0:
            os.close(descriptor)
        self._slots[pid] = _Slot(facts["runner"], facts["slot"])

    def _become_slot(self, facts: dict[str, Any], descriptor: int) -> NoReturn:
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
            from flame_backend.runner.slot import run_slot

            code = run_slot(self._parent, self._setup, facts, descriptor)
        except BaseException:  # noqa: BLE001 - nothing may return into the zygote's loop
            traceback.print_exc()
        finally:
            _flush()
            os._exit(code)

    def _kill(self, runner: str, slot: int) -> None:
        for pid, found in self._slots.items():
            if found.runner == runner and found.slot == slot and not found.kill_at:
                found.kill_at = time.monotonic() + KILL_SECONDS
                _signal_group(pid, signal.SIGTERM)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for pid, slot in self._slots.items():
            if slot.kill_at and now >= slot.kill_at:
                _signal_group(pid, signal.SIGKILL)
                slot.kill_at = now + KILL_SECONDS

    def _bury(self) -> None:
        """Report slots that ended, and end what is left of their groups.

        The group first: its number is the slot's until the slot is reaped.
        """
        for pid, slot in list(self._slots.items()):
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, pid, options) is None:
                continue
            _signal_group(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            del self._slots[pid]
            self._report_end(slot, os.waitstatus_to_exitcode(status))

    def _end_slots(self) -> None:
        for pid in self._slots:
            _signal_group(pid, signal.SIGKILL)

    def _report_end(self, slot: _Slot, code: int) -> None:
        self._report(
            Kind.SLOT_ENDED,
            {
                "runner": slot.runner,
                "slot": slot.slot,
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
        import ssl  # noqa: F401


def _failure(error: BaseException) -> dict[str, str]:
    return {
        "phase": "import",
        "reason": f"{type(error).__name__}: {error}"[:1024],
        "traceback": traceback.format_exc()[-TRACEBACK_CHARACTERS:],
    }


def _signal_group(pid: int, number: int) -> None:
    """Signal a slot and its group; it is not reaped yet, so the number is still its."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # User code may have closed them, or replaced them by anything.
        with suppress(Exception):
            stream.flush()
