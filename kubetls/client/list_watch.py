"""A collection that keeps itself true: list, watch, and list again after a gap.

What controllers need. Expiry, cuts and restarts of the server become events: its
consumer sees each object's last state, and never an error as "empty".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kubetls.client.listing import by_name, object_key
from kubetls.client.stream import TRANSIENT, Event, Stream
from kubetls.errors import Expired

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from kubetls.client.listing import Listing
    from kubetls.client.watch import Watch


class ListWatch(Stream):
    """A collection as events: ADDED for what exists, SYNCED, then every change.

    After a gap it lists again and yields the difference, then SYNCED once more.

    Args:
        listing: Begins a list; is given how to pause between the tries of a page.
        watch: Begins a watch at a resource version.

    Attributes:
        objects: The collection by (namespace, name), as of the last event.
        resource_version: Version of the last list or event.

    Raises (while iterating):
        ApiError: The server refuses the list or the watch (401, 403, 404, ...).
    """

    def __init__(
        self,
        listing: Callable[[Callable[[float], None]], Listing],
        watch: Callable[[str], Watch],
    ) -> None:
        super().__init__()
        self._begin_list = listing
        self._begin_watch = watch
        self._watch: Watch | None = None
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
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
            self._unless_stopped()
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
        listing = self._begin_list(self._pause)
        found = by_name(listing)
        version = listing.resource_version or ""
        self.resource_version = version
        for key in [key for key in self.objects if key not in found]:
            yield Event("DELETED", self.objects.pop(key), version)
        for key, item in found.items():
            known = self.objects.get(key)
            if known is not None and _field(known, "uid") != _field(item, "uid"):
                # Deleted and created again while nobody looked: two events.
                yield Event("DELETED", self.objects.pop(key), version)
                known = None
            self.objects[key] = item
            if known is None:
                yield Event("ADDED", item, version)
            elif _field(known, "resourceVersion") != _field(item, "resourceVersion"):
                yield Event("MODIFIED", item, version)

    def _changes(self) -> Generator[Event]:
        self._watch = watch = self._begin_watch(self.resource_version or "")
        self._unless_stopped()
        with watch:
            for event in watch:
                self.resource_version = event.resource_version or self.resource_version
                if event.type == "BOOKMARK":
                    continue
                if event.type == "DELETED":
                    self.objects.pop(object_key(event.object), None)
                else:
                    self.objects[object_key(event.object)] = event.object
                yield event


def _field(item: dict[str, Any], name: str) -> object:
    return item["metadata"].get(name)
