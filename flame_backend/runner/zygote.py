"""The zygote: loads the app once, forks a slot when asked, and buries slots.

Forked from the agent before any TLS or thread exists. One loop, no threads; what
preloading leaves running is the app's own. The zygote leads a process group of its
own, so that the agent can end it, its slots and their children with one signal.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flame_backend.wire.frames import FrameDecoder, Kind, Limits, pack_frame

if TYPE_CHECKING:
    from flame_backend.runner.parent import Parent

KILL_SECONDS: Final = 2.0
TRACEBACK_CHARACTERS: Final = 64 * 1024

_LIMITS: Final = Limits(64 * 1024 * 1024)
_PR_SET_PDEATHSIG: Final = 1


def run_zygote(agent: socket.socket, parent: Parent) -> NoReturn:
    """Serve the agent until it is gone; never returns."""
    try:
        os.setpgid(0, 0)
        die_with_parent()
        Zygote(agent, parent).serve()
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    finally:
        # Slots and whatever user code started are in this group.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def die_with_parent() -> None:
    """Have the kernel end this process with the one that forked it (Linux)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


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
        self._descriptors: list[int] = []
        self._setup: dict[str, Any] = {}

    def serve(self) -> None:
        """Obey frames and bury slots until the agent is gone."""
        woken, wakeup = socket.socketpair()
        for end in (woken, wakeup):
            end.setblocking(False)
        self._woken, self._wakeup = woken, wakeup
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        decoder = FrameDecoder(_LIMITS)
        while True:
            readable, _, _ = select.select([self._agent, woken], [], [], self._wait())
            if woken in readable:
                woken.recv(4096)
            self._bury()
            self._kill_late()
            if self._agent in readable:
                data, descriptors, _, _ = socket.recv_fds(self._agent, 65536, 16)
                if not data:
                    return
                for descriptor in descriptors:
                    # They arrive inheritable; user code execs programs.
                    os.set_inheritable(descriptor, False)
                self._descriptors += descriptors
                for frame in decoder.feed(data):
                    self._obey(frame.kind, bytes(frame.body))

    def _wait(self) -> float | None:
        moments = [slot.kill_at for slot in self._slots.values() if slot.kill_at]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _obey(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.WELCOME:
            self._load(body)
            return
        facts = json.loads(body)
        if kind is Kind.OPEN_SLOT:
            self._fork(facts)
        elif kind is Kind.KILL_SLOT:
            self._kill(facts["runner"], facts["slot"], KILL_SECONDS)
        elif kind is Kind.SHUTDOWN:
            for slot in list(self._slots.values()):
                self._kill(slot.runner, slot.slot, float(facts.get("grace", 0.0)))

    # ------------------------------------------------------------------ the app

    def _load(self, body: bytes) -> None:
        """Become a copy of the app: its paths, its modules, its classes."""
        started = time.monotonic()
        phase = "import"
        try:
            from flame_backend.wire.functions import load_object

            paths = json.loads(body[: body.index(b"\n")])
            known = set(sys.path)
            sys.path += [path for path in paths["sys_path"] if path not in known]
            if paths["cwd"]:
                with suppress(OSError):
                    os.chdir(paths["cwd"])
            self._setup = load_object(body[body.index(b"\n") + 1 :])
            for module in self._setup["preload"]:
                importlib.import_module(module)
            # What every slot needs, loaded once.
            import flame_backend.runner.slot
            import flame_backend.wire.exceptions  # noqa: F401
        except BaseException as error:  # noqa: BLE001 - the app's import may raise anything
            facts = {
                "phase": phase,
                "reason": f"{type(error).__name__}: {error}"[:1024],
                "traceback": traceback.format_exc()[-TRACEBACK_CHARACTERS:],
            }
            self._report(Kind.FAILED, facts)
            return
        self._report(
            Kind.READY,
            {"pid": os.getpid(), "phases": [["import", time.monotonic() - started]]},
        )

    # ------------------------------------------------------------------ slots

    def _fork(self, facts: dict[str, Any]) -> None:
        descriptor = self._descriptors.pop(0) if self._descriptors else -1
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become_slot(facts, descriptor)
        # Before the next fork: a copy in a sibling would keep the link open.
        if descriptor >= 0:
            os.close(descriptor)
        self._slots[pid] = _Slot(facts["runner"], facts["slot"])

    def _become_slot(self, facts: dict[str, Any], descriptor: int) -> NoReturn:
        code = 70
        try:
            die_with_parent()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            self._agent.close()
            self._woken.close()
            self._wakeup.close()
            from flame_backend.runner.slot import run_slot

            code = run_slot(self._parent, self._setup, facts, descriptor)
        except BaseException:  # noqa: BLE001 - nothing may return into the zygote's loop
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _kill(self, runner: str, slot: int, grace: float) -> None:
        for pid, found in self._slots.items():
            if found.runner == runner and found.slot == slot and not found.kill_at:
                found.kill_at = time.monotonic() + grace
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for pid, slot in self._slots.items():
            if slot.kill_at and now >= slot.kill_at:
                # Not reaped yet, so the number is still this process.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                slot.kill_at = now + KILL_SECONDS

    def _bury(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                slot = self._slots.pop(pid, None)
                if slot is not None:
                    self._report_end(slot, os.waitstatus_to_exitcode(status))

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
        with suppress(BrokenPipeError):
            self._agent.sendall(pack_frame(kind, json.dumps(facts).encode()))
