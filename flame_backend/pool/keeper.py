"""One thread that sleeps until the earliest moment somebody asked for.

Deadlines are armed for each call and hardly ever come due. So a later one than the
keeper already sleeps for does not wake it: it looks again when that one has passed.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_SECONDS: Final = 3600.0
"""The longest sleep; what the system allows is not the same everywhere."""


class Keeper:
    """A daemon thread, started with the first moment.

    Args:
        name: The thread's name.
        lock: Guards the owner's state; held by callers of `by` and `stop`.
        due: Does what is due and asks for the next moment; called without the lock.

    Attributes:
        wake_at: Until when it sleeps; asking for a later moment changes nothing.
    """

    def __init__(
        self, name: str, lock: threading.Lock, due: Callable[[], None]
    ) -> None:
        self._name = name
        self._due = due
        self._alarm = threading.Condition(lock)
        self.wake_at = math.inf
        self._stopped = False
        self._thread: threading.Thread | None = None

    def by(self, moment: float) -> None:
        """See that `due` is called at this moment or soon after; holds the lock."""
        if moment >= self.wake_at or self._stopped:
            return
        self.wake_at = moment
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name=self._name, daemon=True
            )
            self._thread.start()
        else:
            self._alarm.notify()

    def stop(self) -> None:
        """Have the thread end; holds the lock."""
        self._stopped = True
        self._alarm.notify()

    def join(self) -> None:
        """Wait for the thread's end; without the lock."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._alarm:
                while (left := self.wake_at - time.monotonic()) > 0:
                    if self._stopped:
                        return
                    self._alarm.wait(min(left, LONGEST_SECONDS))
                if self._stopped:
                    return
                self.wake_at = math.inf
            self._due()
