"""Watches: events from a resource version on, and lists that keep themselves true.

`Watch` follows one collection and reconnects when the server ends a window; it raises
`Expired` when its version is too old. `ListWatch` adds the list before and after: it
survives expiry, cuts and restarts, and turns what was missed into events, so that its
consumer sees each object's last state and never an error as "empty".

Half-open connections are found by time: the server is asked to end every window after
`WINDOW_SECONDS`, and reading stops a little later.
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

from kubetls.client.status import error_of_event
from kubetls.errors import (
    ApiError,
    ConnectionFailed,
    ConnectTimeout,
    Expired,
    InternalError,
    KubeTLSError,
    ProtocolError,
    ReadTimeout,
    ServerTimeout,
    ServiceUnavailable,
    TooManyRequests,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from kubetls.client.listing import Listing
    from kubetls.client.response import Response

WINDOW_SECONDS: Final = 290
"""Length of a window; below the five minutes after which many NATs forget."""

MARGIN_SECONDS: Final = 10.0
"""How much longer reading waits than the server was asked to send."""

LINE_BYTES: Final = 16 * 1024 * 1024
"""Largest event; objects have at most 1.5 MiB in etcd."""

EMPTY_WINDOWS: Final = 3
"""Windows in a row that end at once and empty: some servers say "expired" like that."""

BACKOFF_SECONDS: Final = 0.8
BACKOFF_MAX_SECONDS: Final = 30.0

_TRANSIENT: Final = (
    ConnectTimeout,
    ConnectionFailed,
    InternalError,
    ReadTimeout,
    ServerTimeout,
    ServiceUnavailable,
    TooManyRequests,
)


class OpenStream(Protocol):
    """How a stream is opened."""

    def __call__(
        self, path: str, query: Mapping[str, object], *, read_timeout: float | None
    ) -> Response:
        """Send the request and return the response with its body unread."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    Attributes:
        type: ADDED, MODIFIED, DELETED, BOOKMARK, or SYNCED (list_watch only: all
            objects of a full list have been handed out).
        object: The object after the change; before it for DELETED; {} for SYNCED.
        resource_version: Version from which a watch would go on after this event.
    """

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "SYNCED"]
    object: dict[str, Any]
    resource_version: str


class _Stopped(Exception):
    """The consumer asked for the end."""


class _Stream:
    """What both kinds share: iteration, `next`, `stop`, and waiting that ends early.

    Events are produced by the thread that asks for them; only `next` with a timeout
    uses a helper thread, which reads ahead by at most one event.
    """

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._response: Response | None = None
        self._lock = threading.Lock()
        self._produced = self._guarded()
        self._ahead: queue.SimpleQueue[Event | KubeTLSError | None] | None = None
        self._wanted = threading.Semaphore(0)
        self._asked = False

    def _events(self) -> Iterator[Event]:
        raise NotImplementedError

    def _guarded(self) -> Generator[Event]:
        try:
            yield from self._events()
        except _Stopped:
            return
        except KubeTLSError:
            if not self._stopping.is_set():
                raise
        finally:
            self._drop()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.next(None)
        if event is None:
            raise StopIteration
        return event

    def next(self, timeout: float | None) -> Event | None:
        """Return the next event; None when the stream ended or the time is up.

        Args:
            timeout: Seconds to wait; None waits as long as it takes.
        """
        if timeout is None and self._ahead is None:
            return next(self._produced, None)
        if self._ahead is None:
            self._ahead = queue.SimpleQueue()
            threading.Thread(
                target=self._read_ahead, name="kubetls-watch", daemon=True
            ).start()
        if not self._asked:
            self._asked = True
            self._wanted.release()
        try:
            found = self._ahead.get(timeout=timeout)
        except queue.Empty:
            return None
        self._asked = False
        if isinstance(found, KubeTLSError):
            raise found
        return found

    def _read_ahead(self) -> None:
        assert self._ahead is not None  # set before this thread starts
        while True:
            self._wanted.acquire()
            try:
                event = next(self._produced, None)
            except KubeTLSError as error:
                self._ahead.put(error)
                return
            self._ahead.put(event)
            if event is None:
                return

    def stop(self) -> None:
        """End the stream from any thread; iteration stops. Idempotent."""
        self._stopping.set()
        with self._lock:
            if self._response is not None:
                self._response.interrupt()
        self._wanted.release()

    def _hold(self, response: Response) -> Response:
        with self._lock:
            self._response = response
        if self._stopping.is_set():
            raise _Stopped
        return response

    def _drop(self) -> None:
        with self._lock:
            response, self._response = self._response, None
        if response is not None:
            response.close()

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise _Stopped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        # Close the connection now; another thread that is reading closes it itself.
        with suppress(ValueError):
            self._produced.close()


class Watch(_Stream):
    """Events of a collection from a resource version on.

    Iterable and a context manager. Reconnects by itself when the server ends a
    window, when the connection breaks, and after 429 and 5xx with growing pauses.

    Attributes:
        resource_version: Where a new watch would go on.

    Raises (while iterating):
        Expired: The version is too old, as HTTP status or as event; list again.
        ApiError: The server refuses the watch (401, 403, 404, ...).
    """

    def __init__(
        self,
        open_stream: OpenStream,
        path: str,
        *,
        resource_version: str | None,
        labels: str | None,
        fields: str | None,
    ) -> None:
        super().__init__()
        self._open = open_stream
        self._path = path
        self._selectors = {"labelSelector": labels, "fieldSelector": fields}
        # Without a start version the server first sends what exists, not in the
        # order of versions, so no position is taken from those events.
        self._settled = resource_version not in {None, "", "0"}
        self.resource_version = resource_version

    def _events(self) -> Iterator[Event]:
        failures, empty = 0, 0
        while True:
            started = time.monotonic()
            seen = 0
            try:
                for event in self._window():
                    seen += 1
                    failures = 0
                    yield event
            except _TRANSIENT as error:
                failures += 1
                self._pause(_backoff(failures, error))
                continue
            finally:
                self._drop()
            if self._stopping.is_set():
                return
            quick = time.monotonic() - started < 1.0
            empty = empty + 1 if quick and not seen else 0
            if empty >= EMPTY_WINDOWS:
                raise _expired(self._path)
            if quick:
                self._pause(BACKOFF_SECONDS * random.random())  # noqa: S311 - jitter

    def _window(self) -> Iterator[Event]:
        query = self._selectors | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": WINDOW_SECONDS,
            "resourceVersion": self.resource_version,
        }
        timeout = WINDOW_SECONDS + MARGIN_SECONDS
        response = self._hold(self._open(self._path, query, read_timeout=timeout))
        for line in _lines(response):
            yield self._event(line)

    def _event(self, line: bytes) -> Event:
        parsed = _parsed(line, self._path)
        kind, item = parsed.get("type"), parsed.get("object")
        if not isinstance(item, dict):
            raise ProtocolError(self._path, "an event without object", True)
        if kind == "ERROR":
            raise error_of_event(item, self._path)
        if kind not in {"ADDED", "MODIFIED", "DELETED", "BOOKMARK"}:
            raise ProtocolError(self._path, "an event of unknown type", True)
        version = str((item.get("metadata") or {}).get("resourceVersion") or "")
        if kind != "ADDED":
            self._settled = True
        if self._settled and version:
            self.resource_version = version
        return Event(kind, item, version)


class ListWatch(_Stream):
    """A collection as events: ADDED for what exists, SYNCED, then every change.

    After a gap it lists again and yields the difference, then SYNCED once more.

    Attributes:
        objects: The collection by (namespace, name), as of the last event.
        resource_version: Version of the last list or event.
    """

    def __init__(
        self,
        list_: Callable[..., Listing],
        open_stream: OpenStream,
        path: str,
        *,
        labels: str | None,
        fields: str | None,
    ) -> None:
        super().__init__()
        self._list = list_
        self._open = open_stream
        self._path = path
        self._labels = labels
        self._fields = fields
        self._watch: Watch | None = None
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.resource_version: str | None = None

    def stop(self) -> None:
        """End the stream from any thread; iteration stops. Idempotent."""
        super().stop()
        watch = self._watch
        if watch is not None:
            watch.stop()

    def _events(self) -> Iterator[Event]:
        failures = 0
        while True:
            try:
                yield from self._difference()
                failures = 0
                yield Event("SYNCED", {}, self.resource_version or "")
                yield from self._changes()
            except Expired:
                self._pause(BACKOFF_SECONDS * random.random())  # noqa: S311 - jitter
            except _TRANSIENT as error:
                failures += 1
                self._pause(_backoff(failures, error))
            else:
                return

    def _difference(self) -> Iterator[Event]:
        """List, and yield what that changes in `objects`."""
        listing = self._list(self._path, labels=self._labels, fields=self._fields)
        found = {_key(item): item for item in listing}
        version = listing.resource_version or ""
        self.resource_version = version
        for key in [key for key in self.objects if key not in found]:
            yield Event("DELETED", self.objects.pop(key), version)
        for key, item in found.items():
            known = self.objects.get(key)
            self.objects[key] = item
            if known is None:
                yield Event("ADDED", item, version)
            elif _uid(known) != _uid(item):
                # Deleted and created again while nobody looked: two events.
                yield Event("DELETED", known, version)
                yield Event("ADDED", item, version)
            elif (
                known["metadata"]["resourceVersion"]
                != (item["metadata"]["resourceVersion"])
            ):
                yield Event("MODIFIED", item, version)

    def _changes(self) -> Iterator[Event]:
        watch = Watch(
            self._open,
            self._path,
            resource_version=self.resource_version,
            labels=self._labels,
            fields=self._fields,
        )
        self._watch = watch
        if self._stopping.is_set():
            raise _Stopped
        with watch:
            for event in watch:
                self.resource_version = event.resource_version or self.resource_version
                if event.type == "BOOKMARK":
                    continue
                if event.type == "DELETED":
                    self.objects.pop(_key(event.object), None)
                else:
                    self.objects[_key(event.object)] = event.object
                yield event


def _lines(response: Response) -> Iterator[bytes]:
    rest = b""
    for part in response.stream():
        *lines, rest = (rest + part).split(b"\n")
        yield from (line for line in lines if line)
        if len(rest) > LINE_BYTES:
            raise ProtocolError("watch", f"an event over {LINE_BYTES} bytes", True)
    if rest:
        # A window ends behind a newline; anything else is a cut.
        raise ConnectionFailed("watch", "the stream ended inside an event", True)


def _parsed(line: bytes, path: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ProtocolError(path, "a line that is no event", True)
    return parsed


def _backoff(failures: int, error: KubeTLSError) -> float:
    ours = min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2.0 ** (failures - 1))
    asked = error.retry_after if isinstance(error, ApiError) else None
    return max(asked or 0.0, ours * random.random())  # noqa: S311 - jitter


def _expired(path: str) -> Expired:
    message = "the server ended the watch at once, several times in a row"
    return Expired(410, "Expired", message, "WATCH", path)


def _key(item: dict[str, Any]) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def _uid(item: dict[str, Any]) -> str:
    return str(item["metadata"].get("uid") or "")
