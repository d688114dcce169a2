"""The zygote's children: which slot each is, when it is to end, and its burial.

Each leads a process group, so that programs which a call started end with its slot.
"""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import suppress

from flame_backend.runner.processes import descendants, end_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

KILL_SECONDS: Final = 2.0


class Child:
    """One process of a slot."""

    __slots__ = ("below", "kill_at", "runner", "slot")

    def __init__(self, runner: str, slot: int, kill_at: float | None = None) -> None:
        self.runner = runner
        self.slot = slot
        self.kill_at = kill_at
        # Processes it had when it was to end, in whatever group or session.
        self.below: list[int] = []


class Children:
    """The processes of all slots, by number.

    Args:
        agent_pid: Adopts what a child that ends leaves behind.
    """

    def __init__(self, agent_pid: int) -> None:
        self._agent_pid = agent_pid
        self._living: dict[int, Child] = {}

    def __len__(self) -> int:
        return len(self._living)

    def add(self, pid: int, child: Child) -> None:
        """Keep a process that was just made."""
        self._living[pid] = child

    def told(self) -> list[tuple[int, str, int, float | None]]:
        """Return what the program that this process runs next has to know."""
        return [
            (pid, child.runner, child.slot, child.kill_at)
            for pid, child in self._living.items()
        ]

    def learn(self, told: Iterable[tuple[int, str, int, float | None]]) -> None:
        """Keep what the program before has told."""
        for pid, runner, slot, kill_at in told:
            self._living[pid] = Child(runner, slot, kill_at)

    def next_kill(self) -> float:
        """Return the moment at which `kill_late` has something to do; inf for never."""
        moments = (child.kill_at for child in self._living.values() if child.kill_at)
        return min(moments, default=math.inf)

    def ask(self, runner: str, slot: int, grace: float) -> None:
        """Ask a slot's process to end; it is killed when its grace is over."""
        at = time.monotonic() + grace
        for pid, child in self._living.items():
            if (child.runner, child.slot) != (runner, slot):
                continue
            if not child.kill_at:
                child.kill_at = at
                child.below = descendants(pid)
                _ask_to_end(pid)
            child.kill_at = min(child.kill_at, at)

    def kill_late(self) -> None:
        """Kill those whose grace is over."""
        now = time.monotonic()
        for pid, child in self._living.items():
            if child.kill_at and now >= child.kill_at:
                child.below += descendants(pid)
                _signal_group(pid, signal.SIGKILL)
                child.kill_at = now + KILL_SECONDS

    def kill_all(self) -> None:
        """Kill them, without a wait."""
        for pid in self._living:
            _signal_group(pid, signal.SIGKILL)

    def bury(self) -> Iterator[tuple[Child, int]]:
        """Yield those that ended, with exit codes; end what is left of their groups.

        The group first: its number is the slot's until the slot is reaped.
        """
        for pid, child in list(self._living.items()):
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, pid, options) is None:
                continue
            _signal_group(pid, signal.SIGKILL)
            if child.below:
                # The agent has adopted them.
                end_below(self._agent_pid, child.below)
            _, status = os.waitpid(pid, 0)
            del self._living[pid]
            yield child, os.waitstatus_to_exitcode(status)


def _ask_to_end(pid: int) -> None:
    """Signal a slot's group, once: a handler that runs is not to be interrupted."""
    try:
        os.killpg(pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _signal_group(pid: int, number: int) -> None:
    """Signal a slot and its group; it is not reaped yet, so the number is still its."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
