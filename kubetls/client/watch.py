"""A watch: the events of a collection from a resource version on.

Reconnects when the server ends a window, when the connection breaks, and after 429 and
5xx; raises `Expired` when its version is too old. Half-open connections are found by
time: the server is asked to end every window after `WINDOW_SECONDS`, and reading stops
a little later.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, Protocol

from kubetls.client.decoding import NotDecoded
from kubetls.client.lines import whole_lines
from kubetls.client.status import error_of_status
from kubetls.client.stream import TRANSIENT, Event, Stream
from kubetls.errors import Expired, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from kubetls.client.exchange import Waiter
    from kubetls.client.listing import Collection
    from kubetls.client.response import Response

WINDOW_SECONDS: Final = 290
"""Length of a window; below the five minutes after which many NATs forget."""

MARGIN_SECONDS: Final = 10.0
"""How much longer reading waits than the server was asked to send."""

LINE_BYTES: Final = 16 * 1024 * 1024
"""Largest event; objects have at most 1.5 MiB in etcd."""

EMPTY_WINDOWS: Final = 3
"""Windows in a row that end at once and empty: some servers say "expired" like that."""


class OpenStream(Protocol):
    """How a stream is opened."""

    def __call__(
        self,
        path: str,
        query: Mapping[str, object],
        *,
        read_timeout: float | None,
        waiter: Waiter | None = None,
    ) -> Response:
        """Send the request and return the response with its body unread."""
        ...


class Watch(Stream):
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
        collection: Collection[Any],
        resource_version: str | None,
        *,
        initial: bool = False,
    ) -> None:
        super().__init__()
        self._open = open_stream
        self._collection = collection
        self._initial = initial
        # Without a start version the server first sends what exists, not in the
        # order of versions, so no position is taken from those events.
        self._settled = resource_version not in {None, "", "0"}
        self.resource_version = resource_version

    def _events(self) -> Generator[Event]:
        failures, empty = 0, 0
        while True:
            self.unless_stopped()
            started = time.monotonic()
            seen = 0
            try:
                with closing(self._window()) as window:
                    for event in window:
                        seen += 1
                        failures = 0
                        yield event
            except TRANSIENT as error:
                if self._initial and not self._settled:
                    # Half of what existed, and then all of it: what went in between
                    # would stay. Who asked begins anew.
                    raise
                failures += 1
                self._back_off(failures, error)
                continue
            if self._initial and not self._settled:
                return
            quick = time.monotonic() - started < 1.0
            empty = empty + 1 if quick and not seen else 0
            if empty >= EMPTY_WINDOWS:
                raise _expired(self._collection.path)
            if quick:
                self._breathe()

    def _window(self) -> Generator[Event]:
        query = self._collection.selectors | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": WINDOW_SECONDS,
            "resourceVersion": self.resource_version,
        }
        if self._initial and not self._settled:
            # What exists comes first, then a bookmark that says so (KEP-3157).
            query |= {
                "sendInitialEvents": "true",
                "resourceVersionMatch": "NotOlderThan",
            }
        timeout = WINDOW_SECONDS + MARGIN_SECONDS
        path = self._collection.path
        with self._open(path, query, read_timeout=timeout, waiter=self) as response:
            for line in whole_lines(response, LINE_BYTES):
                if line:
                    yield self._event(line)

    def _event(self, line: bytes) -> Event:
        path = self._collection.path
        try:
            parsed = self._collection.decoding.event(line)
        except NotDecoded as error:
            raise ProtocolError(path, f"no event: {error}", True) from None
        if parsed.type == "ERROR":
            raise error_of_status(parsed.object, path, "WATCH")
        if parsed.type not in {"ADDED", "MODIFIED", "DELETED", "BOOKMARK"}:
            raise ProtocolError(path, "an event of unknown type", True)
        if parsed.type == "BOOKMARK" or (parsed.type != "ADDED" and not self._initial):
            self._settled = True
        if self._settled and parsed.resource_version:
            self.resource_version = parsed.resource_version
        return Event(parsed.type, parsed.object, parsed.resource_version)  # type: ignore[arg-type]  # one of four


def _expired(path: str) -> Expired:
    message = "the server ended the watch at once, several times in a row"
    return Expired(410, "Expired", message, "WATCH", path)
