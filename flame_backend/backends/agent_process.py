"""An agent as a process of ours: when it ends, and what is to end with it."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from flame_backend.runner.processes import session_members

if TYPE_CHECKING:
    import subprocess

END_SECONDS: Final = 5.0
"""After its grace: how long an agent may take to end everything below it."""


def pidfd(pid: int) -> int:
    """Return a descriptor that says when a process ends; -1 where there are none."""
    with suppress(OSError, AttributeError):
        return os.pidfd_open(pid)
    return -1


def await_end(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait for an agent's end, bring it about when it is late, and end its session.

    What the agent itself ends needs no help. Was it killed, its slots are dying with
    it, but programs that user code started are not: they are found by their session,
    whose number stays taken until the agent is reaped.
    """
    if not _ended(process.pid, seconds):
        process.kill()
        _ended(process.pid, END_SECONDS)
    for _ in range(100):
        left = [pid for pid in session_members(process.pid) if pid != process.pid]
        if not left:
            break
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return process.wait()


def _ended(pid: int, seconds: float) -> bool:
    """Wait until a child has ended, without reaping it."""
    guard = pidfd(pid)
    if guard >= 0:
        poll = select.poll()
        poll.register(guard, select.POLLIN)
        found = poll.poll(max(0.0, seconds) * 1000)
        os.close(guard)
        return bool(found)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        options = os.WEXITED | os.WNOWAIT | os.WNOHANG
        if os.waitid(os.P_PID, pid, options) is not None:
            return True
        time.sleep(0.01)
    return False
