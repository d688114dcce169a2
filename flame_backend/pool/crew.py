"""Threads that see to submitted calls and fresh slots, one at a time each.

Not a ThreadPoolExecutor: the interpreter joins its threads before any exit handler of
ours runs, so that Ctrl-C would wait for calls that nobody will collect. These threads
are daemons; the pool's own shutdown decides what they may finish.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.pool.calls import Call, Lease

    Job = Call | Lease

logger = logging.getLogger("flame_backend.pool")


class Crew:
    """Threads, started when there is work for one more.

    Args:
        limit: Most threads. A call comes here with its slot, so as many as there are
            slots never leave one waiting; one more tells of calls that failed.
        name: Prefix of the threads' names.
        serve: Sees to one job. Whatever the app's callbacks make it raise is logged.

    Attributes:
        limit: As above; it may change.
    """

    def __init__(self, limit: int, name: str, serve: Callable[[Job], None]) -> None:
        self.limit = limit
        self._name = name
        self._serve = serve
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def expect(self, jobs: int) -> None:
        """Have threads ready for so many jobs.

        A program may end with calls that wait for a slot, and CPython 3.12.0 to 3.12.2
        starts no thread once the main one has ended.
        """
        wanted = min(jobs, self.limit)
        if len(self._threads) < wanted:
            with self._lock:
                while len(self._threads) < wanted:
                    self._start()

    def put(self, job: Job) -> None:
        """Have a thread see to a job; does not block."""
        self._jobs.put(job)
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self.limit:
                self._start()

    def _start(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                with self._lock:
                    self._idle += 1
                job = self._jobs.get()
            if job is None:
                return
            try:
                self._serve(job)
            except BaseException:  # a thread less is a call that nobody sees to
                logger.exception("a callback raised")
            # Nothing here keeps a result alive until the next call comes.
            del job

    def is_here(self) -> bool:
        """Tell whether the present thread is one of these."""
        return threading.current_thread() in self._threads

    def close(self) -> None:
        """End the threads when they have seen to what is there; wait for that."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
