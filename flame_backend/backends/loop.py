"""One thread with a selector, timers, and a way for other threads to give it work.

Everything runs in that thread, one step at a time; a step that raises is logged and
costs nobody else their turn. Knows nothing of runners.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[], None]
    Watched = socket.socket | int

logger = logging.getLogger("flame_backend.hub")

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

LONGEST_SECONDS: Final = 3600.0
"""The longest sleep; epoll refuses one of 25 days."""


class Loop:
    """A thread that waits for sockets, moments and steps.

    Args:
        name: The thread's name.
        at_end: The last step, before the selector goes.
    """

    def __init__(self, name: str, at_end: Step) -> None:
        self._at_end = at_end
        self._steps: deque[Step] = deque()
        self._timers: list[tuple[float, int, Step]] = []
        self._order = itertools.count()
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._woken = socket.socketpair()
        for end in (self._wakeup, self._woken):
            end.setblocking(False)
        self.watch(self._woken, READ, self._drain)
        self.closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def do(self, step: Step) -> None:
        """Run a step soon; from any thread. After the end, at once, in the caller's."""
        self._steps.append(step)
        self._wake()
        if self.closing and not self._thread.is_alive():
            while self._steps:
                self._run_steps()

    def after(self, seconds: float, step: Step) -> None:
        """Run a step later; from any thread. It finds out whether it still is due."""
        at = time.monotonic() + seconds
        self.do(lambda: heapq.heappush(self._timers, (at, next(self._order), step)))

    def watch(
        self, watched: Watched, events: int, ready: Callable[[int], None]
    ) -> None:
        """Call `ready` with what a socket can do; as all below, in the thread only."""
        self._selector.register(watched, events, ready)

    def expect(self, watched: Watched, events: int) -> None:
        """Change what a watched socket is watched for."""
        key = self._selector.get_key(watched)
        if key.events != events:
            self._selector.modify(watched, events, key.data)

    def unwatch(self, watched: Watched) -> None:
        """Stop watching; fine when it is not watched."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(watched)

    def close(self) -> None:
        """End the thread, and wait for that unless it is the caller."""
        self.closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def after_fork(self) -> None:
        """In a forked child: close the copies.

        Nothing is unregistered: the set that epoll watches is the parent's too.
        """
        self._selector.close()
        self._wakeup.close()
        self._woken.close()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self.closing:
            for key, mask in self._selector.select(self._wait()):
                self._guarded(lambda key=key, mask=mask: key.data(mask))  # type: ignore[misc]
            self._run_steps()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._guarded(heapq.heappop(self._timers)[2])
        self._guarded(self._at_end)
        while self._steps:
            self._run_steps()
        self._selector.close()
        self._wakeup.close()
        self._woken.close()

    def _wait(self) -> float | None:
        if not self._timers:
            return None
        left = self._timers[0][0] - time.monotonic()
        return min(max(0.0, left), LONGEST_SECONDS)

    def _run_steps(self) -> None:
        """Run the steps that there are; those that they leave have their turn later."""
        for _ in range(len(self._steps)):
            self._guarded(self._steps.popleft())

    def _guarded(self, step: Step) -> None:
        try:
            step()
        except Exception:
            logger.exception("a step failed")

    def _wake(self) -> None:
        # A full pipe has woken it already; a closed one has no one to wake.
        with suppress(OSError):
            self._wakeup.send(b"\0")

    def _drain(self, _mask: int) -> None:
        with suppress(BlockingIOError):
            self._woken.recv(4096)
