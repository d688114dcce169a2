"""A collection that keeps itself true: list, watch, and list again after a gap.

What controllers need. Expiry, cuts and restarts of the server become events: its
consumer sees each object's last state, and never an error as "empty".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kubetls.client.listing import Listing
from kubetls.client.stream import TRANSIENT, Event, Stream
from kubetls.client.watch import Watch
from kubetls.errors import Expired

if TYPE_CHECKING:
    from collections.abc import Generator

    from kubetls.client.listing import Collection, Fetch
    from kubetls.client.watch import OpenStream

PAGE: Final = 500
"""Objects a page, as kubectl and client-go ask for."""


class ListWatch(Stream):
    """A collection as events: ADDED for what exists, SYNCED, then every change.

    After a gap it lists again and yields the difference, then SYNCED once more.

    Attributes:
        objects: The collection by (namespace, name), as of the last event.
        resource_version: Version of the last list or event.

    Raises (while iterating):
        ApiError: The server refuses the list or the watch (401, 403, 404, ...).
    """

    def __init__(
        self,
        fetch: Fetch,
        open_stream: OpenStream,
        collection: Collection[Any],
    ) -> None:
        super().__init__()
        self._fetch = fetch
        self._open = open_stream
        self._collection = collection
        self._watch: Watch | None = None
        self.objects: dict[tuple[str, str], Any] = {}
        self.resource_version: str | None = None

    def stop(self) -> None:
        """End the stream from any thread; iteration stops. Idempotent."""
        super().stop()
        watch = self._watch
        if watch is not None:
            watch.stop()

    def _events(self) -> Generator[Event]:
        failures = 0
        while True:
            self.unless_stopped()
            try:
                yield from self._difference()
                failures = 0
                yield Event("SYNCED", {}, self.resource_version or "")
                yield from self._changes()
            except Expired:
                self._breathe()
            except TRANSIENT as error:
                failures += 1
                self._back_off(failures, error)
            else:
                return

    def _difference(self) -> Generator[Event]:
        """List, and yield what that changes in `objects`."""
        uid, newest = self._collection.decoding.uid, self._collection.decoding.version
        listing = Listing(self._fetch, self._collection, PAGE, waiter=self)
        found = listing.by_name()
        version = listing.resource_version or ""
        self.resource_version = version
        for key in [key for key in self.objects if key not in found]:
            yield Event("DELETED", self.objects.pop(key), version)
        for key, item in found.items():
            known = self.objects.get(key)
            if known is not None and uid(known) != uid(item):
                # Deleted and created again while nobody looked: two events.
                yield Event("DELETED", self.objects.pop(key), version)
                known = None
            self.objects[key] = item
            if known is None:
                yield Event("ADDED", item, version)
            elif newest(known) != newest(item):
                yield Event("MODIFIED", item, version)

    def _changes(self) -> Generator[Event]:
        key_of = self._collection.decoding.key
        watch = Watch(self._open, self._collection, self.resource_version or "")
        self._watch = watch
        self.unless_stopped()
        with watch:
            for event in watch:
                self.resource_version = event.resource_version or self.resource_version
                if event.type == "BOOKMARK":
                    continue
                if event.type == "DELETED":
                    self.objects.pop(key_of(event.object), None)
                else:
                    self.objects[key_of(event.object)] = event.object
                yield event
