"""How far a call has come, told to its caller while it runs.

Imports next to nothing: the zygote loads it for every slot.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Report = Callable[[Any, str | None], None]


class Current:
    """The call that runs in this process, if one does.

    Threads that a call leaves behind may report as well: between calls that is
    dropped, and never comes between the bytes of a reply; during the next call it is
    taken for that call's, as nothing tells whose thread it is.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Be without a call; in a forked child, whose lock nobody would let go."""
        self._lock = threading.Lock()
        self._report: Report | None = None

    def begin(self, report: Report) -> None:
        """A call begins; its reports go there."""
        self._report = report

    def end(self) -> None:
        """The call is over; returns when no report of it is being sent."""
        with self._lock:
            self._report = None

    def tell(self, value: Any, message: str | None) -> None:
        """Report, if a call runs."""
        with self._lock:
            if self._report is not None:
                self._report(value, message)


current = Current()
os.register_at_fork(after_in_child=current.forget)


def progress(value: Any, message: str | None = None) -> None:
    """Report how far the call has come; outside a runner nothing happens.

    The caller's future passes it to the functions given to `add_progress_callback`.

    Args:
        value: Anything a result may be, such as a fraction; small.
        message: A line for people.

    Raises:
        ResultNotSerializable: The value cannot travel as data.
    """
    current.tell(value, message)
