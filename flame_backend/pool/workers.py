"""Threads that fulfil submitted calls.

Not a ThreadPoolExecutor: the interpreter joins its threads before any exit handler of
ours runs, so that Ctrl-C would wait for calls that nobody will collect. These threads
are daemons; the pool's own shutdown decides what they may finish.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    Task = tuple[Future[Any], Callable[[], None]]


class Workers:
    """At most `limit` threads, started when there is work for one more.

    Args:
        limit: Most threads: more than slots could only wait.
        name: Prefix of the threads' names.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._tasks: deque[Task] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def submit(self, future: Future[Any], fulfil: Callable[[], None]) -> None:
        """Have a thread fulfil a future."""
        with self._lock:
            self._tasks.append((future, fulfil))
            if self._idle:
                self._work.notify()
            elif len(self._threads) < self._limit:
                name = f"{self._name}-{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._tasks:
                    if self._closed:
                        return
                    self._idle += 1
                    self._work.wait()
                    self._idle -= 1
                future, fulfil = self._tasks.popleft()
            if future.set_running_or_notify_cancel():
                fulfil()
            # Nothing may keep a result alive until the next task comes.
            del future, fulfil

    def close(self, *, cancel_futures: bool) -> None:
        """Let the threads end when there is no more work."""
        with self._lock:
            self._closed = True
            cancelled = list(self._tasks) if cancel_futures else []
            if cancel_futures:
                self._tasks.clear()
            self._work.notify_all()
        for future, _ in cancelled:
            future.cancel()
            future.set_running_or_notify_cancel()

    def join(self) -> None:
        """Wait for the threads to end."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
