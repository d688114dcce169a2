"""A collection that keeps itself true: list, watch, and list again after a gap.

What controllers need. Expiry, cuts and restarts of the server become events: its
consumer sees each object's last state, and never an error as "empty".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kubetls.client.listing import Listing
from kubetls.client.shapes import mapping
from kubetls.client.stream import TRANSIENT, Event, Stream
from kubetls.client.watch import Watch
from kubetls.errors import BadRequest, Expired, Invalid

if TYPE_CHECKING:
    from collections.abc import Generator

    from kubetls.client.listing import Collection, Fetch
    from kubetls.client.watch import OpenStream

    Objects = dict[tuple[str, str], Any]

INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"

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
        *,
        streams: bool = False,
    ) -> None:
        super().__init__()
        self._streams = streams
        self._fetch = fetch
        self._open = open_stream
        self._collection = collection
        self._watch: Watch | None = None
        self.objects: Objects = {}
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
                present = self._streamed()
                if present is None:
                    present = self._listed()
                # Whoever leaves in the middle leaves no connection open.
                with self._watch or self._begin_watch(self.resource_version) as watch:
                    yield from self._difference(present)
                    failures = 0
                    yield Event("SYNCED", {}, self.resource_version or "")
                    yield from self._changes(watch)
            except Expired:
                self._breathe()
            except TRANSIENT as error:
                failures += 1
                self._back_off(failures, error)
            else:
                return

    def _listed(self) -> Objects:
        """List; the watch then begins at the list's version."""
        listing = Listing(self._fetch, self._collection, PAGE, waiter=self)
        found = listing.by_name()
        self.resource_version = listing.resource_version or ""
        self._watch = None
        return found

    def _streamed(self) -> Objects | None:
        """Take what exists from the watch itself; None where the server does not.

        Spares the API server the memory of whole pages.
        """
        if not self._streams:
            return None
        key_of = self._collection.decoding.key
        found: Objects = {}
        watch = self._begin_watch(None)
        try:
            for event in watch:
                if event.type == "DELETED":
                    found.pop(key_of(event.object), None)
                elif event.type != "BOOKMARK":
                    found[key_of(event.object)] = event.object
                elif _ends_initial_events(event.object):
                    self.resource_version = event.resource_version
                    return found
                else:
                    break  # it knows watches, and not what was asked for
        except (BadRequest, Invalid):
            pass
        with watch:  # and out: closed
            self.unless_stopped()
        self._streams = False
        return None

    def _difference(self, present: Objects) -> Generator[Event]:
        """Yield what a full collection changes in `objects`."""
        uid, newest = self._collection.decoding.uid, self._collection.decoding.version
        version = self.resource_version or ""
        for key in [key for key in self.objects if key not in present]:
            yield Event("DELETED", self.objects.pop(key), version)
        for key, item in present.items():
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

    def _changes(self, watch: Watch) -> Generator[Event]:
        key_of = self._collection.decoding.key
        for event in watch:
            self.resource_version = event.resource_version or self.resource_version
            if event.type == "BOOKMARK":
                continue
            if event.type == "DELETED":
                self.objects.pop(key_of(event.object), None)
            else:
                self.objects[key_of(event.object)] = event.object
            yield event

    def _begin_watch(self, version: str | None) -> Watch:
        initial = version is None
        watch = Watch(self._open, self._collection, version, initial=initial)
        self._watch = watch
        self.unless_stopped()
        return watch


def _ends_initial_events(bookmark: dict[str, Any]) -> bool:
    annotations = mapping(mapping(bookmark, "metadata"), "annotations")
    return annotations.get(INITIAL_EVENTS_END) == "true"
