"""How far a call has come, told to its caller while it runs.

A loop that reports each of a million steps is passed on some twenty times a second;
the last report always arrives, before the result.

Imports next to nothing: the zygote loads it for every slot.
"""

from __future__ import annotations

import os
import threading
import time

from flame_backend.wire.bucket import Bucket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Protocol

    from flame_backend.wire.small import Encoded

    class Reporter(Protocol):
        """The way of one call's reports."""

        def encode(self, value: Any, message: str | None) -> Encoded:
            """Encode a report; raises what the caller of `progress` is to see."""

        def send(self, report: Encoded) -> None:
            """Send it; never raises."""


BURST: Final = 20
PER_SECOND: Final = 20.0
"""More often than people or bars can tell apart."""


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
        self._reporter: Reporter | None = None
        self._waiting: Encoded | None = None
        self._allowed = Bucket(BURST, PER_SECOND)

    def begin(self, reporter: Reporter) -> None:
        """A call begins; its reports go there."""
        self._reporter = reporter

    def end(self) -> None:
        """The call is over; returns when its last report was sent."""
        reporter, self._reporter = self._reporter, None
        # Who takes the lock from now on finds no call; who has it is sending.
        if self._waiting is None and not self._lock.locked():
            return
        with self._lock:
            waiting, self._waiting = self._waiting, None
            if waiting is not None and reporter is not None:
                reporter.send(waiting)

    def tell(self, value: Any, message: str | None) -> None:
        """Report, if a call runs; at once, or when the next one may be sent."""
        reporter = self._reporter
        if reporter is None:
            return
        report = reporter.encode(value, message)
        with self._lock:
            if self._reporter is not reporter:
                return
            self._waiting = None
            if self._allowed.take(1, time.monotonic()):
                reporter.send(report)
            else:
                self._waiting = report


current = Current()
os.register_at_fork(after_in_child=current.forget)


class Here(threading.local):
    """The call that a thread runs where calls have no process (InlineBackend)."""

    current: Current | None = None


here: Final = Here()


def progress(value: Any, message: str | None = None) -> None:
    """Report how far the call has come; outside a runner nothing happens.

    The caller's future passes it to the functions given to `add_progress_callback`. Of
    reports that come faster than some twenty a second, the latest is passed on.

    Args:
        value: Anything a result may be, such as a fraction; small.
        message: A line for people.

    Raises:
        ResultNotSerializable: The value cannot travel as data.
        PayloadTooLarge: It is larger than 64 KiB.
    """
    (here.current or current).tell(value, message)
