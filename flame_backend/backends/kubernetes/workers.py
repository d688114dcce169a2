"""A few threads for requests to the API server.

Not a ThreadPoolExecutor: the interpreter would join its threads at exit, and refuse it
work, while the pool still lets its last calls finish.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[], None]

logger = logging.getLogger("flame_backend.kubernetes")

THREADS: Final = 8
"""A boot is one POST; more at a time only meet the API server's own limits."""


class Workers:
    """Daemon threads, each started when there is work for one more."""

    def __init__(self) -> None:
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def do(self, step: Step) -> None:
        """Run a step soon; not at all after `close`."""
        with self._lock:
            if self._closed:
                return
            self._steps.put(step)
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < THREADS:
                name = f"flame-kubernetes-{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _run(self) -> None:
        while (step := self._next()) is not None:
            try:
                step()
            except Exception:
                logger.exception("a step failed")

    def _next(self) -> Step | None:
        try:
            return self._steps.get_nowait()
        except queue.Empty:
            with self._lock:
                self._idle += 1
            return self._steps.get()

    def close(self) -> None:
        """Finish what was begun and what waits, then end the threads."""
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._steps.put(None)
        for thread in self._threads:
            thread.join()
