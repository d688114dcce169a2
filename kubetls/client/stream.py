"""What watches share: iteration, waiting with a limit, and an end from any thread.

The consumer's thread reads the connection itself; only `next` with a timeout uses a
helper thread, which reads ahead by at most one event. Knows nothing of resources.
"""

from __future__ import annotations

import queue
import random
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from kubetls.client.exchange import Stopped, Waiter
from kubetls.client.limits import waiting_seconds
from kubetls.client.retry import doubled
from kubetls.errors import (
    ApiError,
    ApiTimeout,
    ConnectionFailed,
    ConnectTimeout,
    InternalError,
    KubeTLSError,
    ReadTimeout,
    ServerTimeout,
    ServiceUnavailable,
    TooManyRequests,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from kubetls.transport.connection import Lease

BACKOFF_SECONDS: Final = 0.8
BACKOFF_MAX_SECONDS: Final = 30.0

ASKED_MAX_SECONDS: Final = 60.0
"""Longest pause that a server may ask a stream for, as for requests. A stream asks
again then: nobody would notice one that sleeps for years."""

TRANSIENT: Final = (
    ApiTimeout,
    ConnectTimeout,
    ConnectionFailed,
    InternalError,
    ReadTimeout,
    ServerTimeout,
    ServiceUnavailable,
    TooManyRequests,
)
"""What a stream outlives, keeping its position."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    Attributes:
        type: ADDED, MODIFIED, DELETED, BOOKMARK, or SYNCED (list_watch only: all
            objects of a full list have been handed out).
        object: The object after the change; before it for DELETED. A dict, or what
            the `decoder` makes; always a dict for BOOKMARK, and {} for SYNCED.
        resource_version: Version from which a watch would go on after this event.
    """

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "SYNCED"]
    object: Any
    resource_version: str


class Stream(Waiter):
    """A stream of events; `Watch` and `ListWatch` say which."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._produced = self._until_stopped()
        self._ahead: queue.SimpleQueue[Event | BaseException | None] | None = None
        self._wanted = threading.Semaphore(0)
        self._asked = False
        self._ended = False

    def _events(self) -> Generator[Event]:
        raise NotImplementedError

    def _until_stopped(self) -> Generator[Event]:
        try:
            with closing(self._events()) as events:
                for event in events:
                    if self._stopping.is_set():
                        return
                    yield event
        except Stopped:
            return
        except KubeTLSError:
            # A read that stop() interrupted fails as if the network had.
            if not self._stopping.is_set():
                raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.next(None)
        if event is None:
            raise StopIteration
        return event

    def next(self, timeout: float | None) -> Event | None:
        """Return the next event; None when the stream ended or the time is up.

        `stopped` tells which: a loop that goes on after the end would never rest.

        Args:
            timeout: Seconds to wait; None waits as long as it takes.
        """
        if self._ended:
            return None
        limit = None if timeout is None else waiting_seconds(timeout)
        if timeout is None and self._ahead is None:
            return next(self._produced, None)
        if self._ahead is None:
            self._ahead = queue.SimpleQueue()
            threading.Thread(
                target=self._read_ahead,
                args=[self._ahead],
                name="kubetls-watch",
                daemon=True,
            ).start()
        if not self._asked:
            self._asked = True
            self._wanted.release()
        try:
            found = self._ahead.get(timeout=limit)
        except queue.Empty:
            return None
        self._asked = False
        if isinstance(found, Event):
            return found
        self._ended = True
        if found is not None:
            raise found
        return None

    def _read_ahead(
        self, ahead: queue.SimpleQueue[Event | BaseException | None]
    ) -> None:
        while True:
            self._wanted.acquire()
            try:
                event = next(self._produced, None)
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                ahead.put(error)
                return
            ahead.put(event)
            if event is None:
                return

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called, from any thread; else a stream ends by raising."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """End the stream from any thread; iteration stops. Idempotent."""
        self._stopping.set()
        with self._lock:
            lease = self._lease
        if lease is not None:
            lease.interrupt()
        self._wanted.release()

    # ------------------------------------------------------------------ waiting

    def leased(self, lease: Lease) -> None:
        """Know the connection of the request under way, so that stop() ends it."""
        with self._lock:
            self._lease = lease
        # After the line above: a stop() in between has seen the lease, or is seen.
        self.unless_stopped()

    def pause(self, seconds: float) -> None:
        """Wait; stop() ends it."""
        if self._stopping.wait(seconds):
            raise Stopped

    def unless_stopped(self) -> None:
        """Raise `Stopped` once stop() was called."""
        if self._stopping.is_set():
            raise Stopped

    def _breathe(self) -> None:
        """Pause a little before asking again, not all clients at the same time."""
        self.pause(BACKOFF_SECONDS * random.random())  # noqa: S311 - jitter

    def _back_off(self, failures: int, error: KubeTLSError) -> None:
        """Pause as long as the server asked for, or longer with each failure."""
        ours = doubled(BACKOFF_SECONDS, failures - 1, BACKOFF_MAX_SECONDS)
        asked = error.retry_after if isinstance(error, ApiError) else None
        asked = min(asked or 0.0, ASKED_MAX_SECONDS)
        self.pause(max(asked, ours * random.random()))  # noqa: S311 - jitter

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        # Close the connection now; another thread that is reading closes it itself.
        with suppress(ValueError):
            self._produced.close()
