"""What a slot prints, on its way to the agent, and whose call it is.

Standard output and error of a slot are pipes that the agent reads. Which call runs
stands in eight bytes of shared memory, so that a call which prints nothing costs
nobody a system call before its reply. A call that ends with output still unread puts a
mark behind it. Programs that a call starts print into the same pipes.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import sys
import termios
from contextlib import suppress

from flame_backend.runner.pump import CELL_BYTES, MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_FIONREAD: Final = termios.FIONREAD
_ioctl: Final = fcntl.ioctl


class Outlet:
    """The descriptors of one slot's output.

    Attributes:
        reads: Where its standard output and error are read.
        writes: Where they are written.
        cell: The memory that holds the running call's id.
    """

    def __init__(self) -> None:
        pairs = os.pipe(), os.pipe()
        self.reads = [pair[0] for pair in pairs]
        self.writes = [pair[1] for pair in pairs]
        self.cell = os.memfd_create("flame-call")
        os.truncate(self.cell, CELL_BYTES)

    def given(self) -> list[int]:
        """Return what the slot needs."""
        return [*self.writes, self.cell]

    def close(self) -> None:
        """Close all; agent and slot have theirs."""
        for descriptor in (*self.reads, *self.writes, self.cell):
            os.close(descriptor)


class Running:
    """The call that runs in this slot, as the agent sees it."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self._writes: list[int] = []
        self._unread = array.array("i", [0])
        self._cell: memoryview[int] | None = None

    def attach(self, given: list[int]) -> None:
        """Print into the pipes of an outlet from now on."""
        self.given = given
        *writes, cell = given
        # Our own copies: user code may have closed or replaced the streams.
        self._writes = writes
        for stream, (number, target) in zip(
            (sys.stdout, sys.stderr), enumerate(writes, start=1), strict=True
        ):
            os.dup2(target, number)
            # What was printed before a crash is worth most.
            with suppress(Exception):
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        self._cell = memoryview(mmap.mmap(cell, CELL_BYTES)).cast("Q")

    def begin(self, call_id: int) -> None:
        """A call starts."""
        if self._cell is not None:
            self._cell[0] = call_id

    def end(self) -> None:
        """It is over, and its output written."""
        if self._cell is None:
            return
        unread = self._unread
        try:
            for target in self._writes:
                _ioctl(target, _FIONREAD, unread)
                if unread[0]:
                    os.write(target, MARK + self._cell.tobytes())
        except OSError:
            # User code closes what it likes; then nothing comes this way any more.
            self._writes = []
        self._cell[0] = 0


running = Running()


def is_possible() -> bool:
    """Tell whether this system has what it takes; elsewhere streams are inherited."""
    return hasattr(os, "memfd_create")
