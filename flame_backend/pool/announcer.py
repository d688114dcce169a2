"""The thread that tells `on_event`: in order, under no lock, whatever it does."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.events import Event

END_SECONDS: Final = 5.0
"""How long the last events may take; a callback that hangs does not hold up the end."""


class Announcer:
    """Calls a function with each event.

    Args:
        name: The pool's.
        callback: The app's; what it raises is logged.
    """

    def __init__(self, name: str, callback: Callable[[Event], object]) -> None:
        self._name = name
        self._callback = callback
        self._logger = logging.getLogger(f"flame_backend.pool.{name}")
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Tell an event, soon."""
        self._events.put(event)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"flame-events-{self._name}", daemon=True
                )
                self._thread.start()

    def is_here(self) -> bool:
        """Tell whether the present thread is the one that tells."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Tell what is left; wait for that."""
        thread = self._thread
        if thread is None:
            return
        self._events.put(None)
        if not self.is_here():
            thread.join(END_SECONDS)

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                self._callback(event)
            except BaseException:  # sys.exit() ends no more than this event, either
                self._logger.exception("on_event raised for %r", event)
