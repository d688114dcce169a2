"""Objects and their versions, as etcd and the API server keep them; no network.

One counter of resource versions for everything, a history of changes for watches, and
snapshots for lists in pages. Refusals carry what the API server would answer.
"""

from __future__ import annotations

import copy
import json
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kubetls.testing.selecting import Selects

FIRST_VERSION: Final = 1000

NOW: Final = "2020-01-01T00:00:00Z"
"""The time of everything, so that tests know it."""

_KEPT: Final = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp")
"""What a writer of an object does not change."""


class Refused(Exception):
    """An answer with a Status.

    Attributes:
        code: HTTP status.
        reason: Status.reason.
        message: Status.message.
    """

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(code, reason, message)
        self.code = code
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Place:
    """What a path names.

    Attributes:
        api_version: "v1", "apps/v1", ...
        plural: "pods", ...
        namespace: None for all namespaces and cluster-scoped resources.
        name: None for the collection.
        subresource: "status" or None.
    """

    api_version: str
    plural: str
    namespace: str | None = None
    name: str | None = None
    subresource: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the history."""

    version: int
    type: str
    place: Place
    before: dict[str, Any] | None
    after: dict[str, Any]


@dataclass
class Store:
    """All objects; not thread-safe, the server holds a lock around it."""

    version: int = FIRST_VERSION
    oldest: int = FIRST_VERSION
    history: list[Change] = field(default_factory=list)
    _objects: dict[Place, dict[str, Any]] = field(default_factory=dict)
    _snapshots: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    # ------------------------------------------------------------------ reading

    def get(self, place: Place) -> dict[str, Any]:
        """Return an object."""
        return self._objects[self._known(place)]

    def page(
        self, place: Place, selects: Selects, limit: int, token: str
    ) -> dict[str, Any]:
        """Return a page of a collection, without apiVersion and kind."""
        metadata: dict[str, str]
        if token:
            try:
                version, start = json.loads(token)
                items = self._snapshots[version]
            except (ValueError, KeyError):
                raise Refused(410, "Expired", "the continue token is too old") from None
        else:
            version, start = str(self.version), 0
            items = [item for item in self._within(place) if selects(item)]
        metadata = {"resourceVersion": version}
        if limit and start + limit < len(items):
            self._snapshots[version] = items
            metadata["continue"] = json.dumps([version, start + limit])
            items = items[start : start + limit]
        else:
            items = items[start:]
        return {"metadata": metadata, "items": items}

    def changes(
        self, place: Place, selects: Selects, after: int
    ) -> tuple[list[tuple[str, dict[str, Any]]], int]:
        """Return the events of a collection since a version, and the version now.

        Raises:
            Refused: 410, the version is older than the history.
        """
        if after < self.oldest:
            raise Refused(410, "Expired", f"too old resource version: {after}")
        events = []
        for change in self.history:
            if change.version <= after or not _holds(place, change.place):
                continue
            was = change.before is not None and selects(change.before)
            is_now = change.type != "DELETED" and selects(change.after)
            # To a selector, an object that no longer matches is deleted.
            if is_now:
                events.append(("MODIFIED" if was else "ADDED", change.after))
            elif was:
                events.append(("DELETED", change.after))
        return events, self.version

    def existing(self, place: Place, selects: Selects) -> list[dict[str, Any]]:
        """Return what a watch without a version begins with."""
        return [item for item in self._within(place) if selects(item)]

    # ------------------------------------------------------------------ writing

    def create(self, place: Place, item: dict[str, Any]) -> dict[str, Any]:
        """Add an object and return it as stored."""
        made = copy.deepcopy(item)
        metadata = made.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        name = metadata.get("name")
        if not name:
            raise Refused(422, "Invalid", "name or generateName is required")
        if place.namespace is not None:
            given = metadata.setdefault("namespace", place.namespace)
            if given != place.namespace:
                raise Refused(400, "BadRequest", "the namespaces do not match")
        key = Place(place.api_version, place.plural, place.namespace, name)
        if key in self._objects:
            message = f'{place.plural} "{name}" already exists'
            raise Refused(409, "AlreadyExists", message)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = NOW
        self._store("ADDED", key, None, made)
        return made

    def replace(self, place: Place, item: dict[str, Any]) -> dict[str, Any]:
        """Replace an object; its resourceVersion, if any, must be the current one."""
        key = self._known(place)
        before = self._objects[key]
        given = (item.get("metadata") or {}).get("resourceVersion")
        if given and given != before["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", "the object has been modified")
        after = copy.deepcopy(item)
        if place.subresource == "status":
            after = copy.deepcopy(before) | {"status": after.get("status")}
        metadata = after.setdefault("metadata", {})
        for name in _KEPT:
            if name in before["metadata"]:
                metadata[name] = before["metadata"][name]
        metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
        if after == before:
            # No change, no version, no event: or a controller that writes what is
            # there already would have itself called for ever.
            return after
        ends = "deletionTimestamp" in metadata and not metadata.get("finalizers")
        self._store("DELETED" if ends else "MODIFIED", key, before, after)
        return after

    def patch(self, place: Place, patch: dict[str, Any]) -> dict[str, Any]:
        """Merge a patch into an object (RFC 7396)."""
        before = self.get(place)
        given = (patch.get("metadata") or {}).get("resourceVersion")
        merged = _merged(before, patch)
        merged["metadata"]["resourceVersion"] = given
        return self.replace(place, merged)

    def delete(self, place: Place, preconditions: dict[str, str]) -> dict[str, Any]:
        """Delete an object if the preconditions hold; return its last state.

        One with finalizers is marked, and goes with the last of them.
        """
        key = self._known(place)
        before = self._objects[key]
        for name, wanted in preconditions.items():
            if before["metadata"].get(name) != wanted:
                message = f"the {name} in the precondition does not match"
                raise Refused(409, "Conflict", message)
        after = copy.deepcopy(before)
        if not before["metadata"].get("finalizers"):
            self._store("DELETED", key, before, after)
        elif "deletionTimestamp" not in before["metadata"]:
            after["metadata"]["deletionTimestamp"] = NOW
            self._store("MODIFIED", key, before, after)
        return after

    def forget(self) -> None:
        """Compact: history and snapshots are gone, objects stay."""
        self.version += 1
        self.oldest = self.version
        self.history.clear()
        self._snapshots.clear()

    def _store(
        self,
        kind: str,
        key: Place,
        before: dict[str, Any] | None,
        after: dict[str, Any],
    ) -> None:
        self.version += 1
        after["metadata"]["resourceVersion"] = str(self.version)
        if kind == "DELETED":
            del self._objects[key]
        else:
            self._objects[key] = after
        self.history.append(Change(self.version, kind, key, before, after))

    def _within(self, place: Place) -> list[dict[str, Any]]:
        return [item for key, item in self._objects.items() if _holds(place, key)]

    def _known(self, place: Place) -> Place:
        key = Place(place.api_version, place.plural, place.namespace, place.name)
        if key not in self._objects:
            raise Refused(404, "NotFound", f'{place.plural} "{place.name}" not found')
        return key


def _holds(collection: Place, key: Place) -> bool:
    return (
        (collection.api_version, collection.plural) == (key.api_version, key.plural)
        and collection.namespace in {None, key.namespace}
        and collection.name in {None, key.name}
    )


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return copy.deepcopy(result)
