"""Processes: who is below whom, and ties that the kernel keeps (Linux).

Loaded by agent and zygote, so it imports next to nothing. On other systems the ties
do not exist and the tables are empty; callers have their portable ways as well.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with(parent: int) -> None:
    """Have the kernel end this process with the one that forked it.

    Holds for the thread that forked; zygote and agent have one thread each. Cleared
    in a child, so each process asks for itself.

    Args:
        parent: The process that forked this one; it may have ended already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Have every process below this one whose parent ends become its child."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        # What ctypes itself calls; to load all of it is 2 ms of a boot.
        import _ctypes

        program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type, unused-ignore]
        prctl = _ctypes.dlsym(program, "prctl")
        _ctypes.call_function(prctl, (option, value, 0, 0, 0))


def threads_left() -> str:
    """Name the threads beside this one that a fork would leave without their locks.

    Threads of libraries that end them for a fork (BLAS) are gone after one; it is
    tried when there are any.
    """
    import threading

    named = [found.name for found in threading.enumerate()]
    if len(named) > 1:
        return ", ".join(named[1:])
    if _tasks() > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    left = _tasks() - 1
    return f"{left} of a library" if left > 0 else ""


def _tasks() -> int:
    with suppress(OSError):
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - as below
    return 1


def session_members(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    return [
        pid
        for pid, (_, found, ended) in _table().items()
        if found == session and not ended
    ]


def descendants(root: int) -> list[int]:
    """Return the processes below one that have not ended."""
    table = _table()
    below = {root}
    found = list(below)
    while found:
        found = [
            pid for pid, row in table.items() if row[0] in below and pid not in below
        ]
        below.update(found)
    return [pid for pid in below if pid != root and not table[pid][2]]


def end_below(root: int, only: Collection[int] | None = None) -> None:
    """Kill the processes below one, or those of them that are named."""
    for pid in descendants(root):
        if only is None or pid in only:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _table() -> dict[int, tuple[int, int, bool]]:
    """Return parent, session, and whether it is a zombie, of each process."""
    table: dict[int, tuple[int, int, bool]] = {}
    with suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib is 10 ms of a boot
            if name.isdigit():
                with (
                    suppress(OSError),
                    open(  # noqa: PTH123 - as above
                        f"/proc/{name}/stat", "rb"
                    ) as file,
                ):
                    # The command's name may hold anything, even parentheses.
                    fields = file.read().rpartition(b")")[2].split()
                    ended = fields[0] in b"ZX"
                    table[int(name)] = (int(fields[1]), int(fields[3]), ended)
    return table
