"""From apiVersion and kind to a path: what the API server says it serves."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kubetls.client.paths import group_version_path, path
from kubetls.client.shapes import mappings
from kubetls.errors import ConfigError
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

UNKNOWN_SECONDS: Final = 5.0
"""A kind that is not there is asked for again after this: its definition may just have
been created."""


@dataclass(frozen=True, slots=True)
class Resource:
    """How a kind is served."""

    plural: str
    namespaced: bool


class Discovery:
    """Resources by apiVersion and kind, asked for once; thread-safe.

    Args:
        get: Fetches a path as a dict.
        monotonic: Seconds on a clock that is never set.
    """

    def __init__(
        self,
        get: Callable[[str], dict[str, Any]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._get = get
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, dict[str, Resource]]] = {}

    def resource(self, api_version: str, kind: str) -> Resource:
        """Return how a kind is served.

        Raises:
            ConfigError: The version has no such kind.
            NotFound: The server has no such version.
            ApiError, TransportError: It could not be asked.
        """
        with self._lock:
            asked, kinds = self._known.get(api_version, (float("-inf"), {}))
        now = self._monotonic()
        if kind not in kinds and now - asked >= UNKNOWN_SECONDS:
            kinds = self._ask(api_version)
            with self._lock:
                self._known[api_version] = now, kinds
        found = kinds.get(kind)
        if found is None:
            reason = f"{api_version} has no kind {escaped(kind)!r} on this server"
            raise ConfigError("kind", reason)
        return found

    def _ask(self, api_version: str) -> dict[str, Resource]:
        answer = self._get(group_version_path(api_version))
        return {
            str(entry.get("kind")): Resource(name, bool(entry.get("namespaced")))
            for entry in mappings(answer, "resources")
            # Subresources are listed beside their resource, with kinds of their own.
            if isinstance(name := entry.get("name"), str) and "/" not in name
        }

    def path_of(
        self, item: Mapping[str, Any], namespace: str, subresource: str | None
    ) -> str:
        """Return the path of an object.

        Args:
            item: Has apiVersion, kind and metadata.name.
            namespace: For namespaced objects that name none.
            subresource: "status" and the like.

        Raises:
            ConfigError: One of these is missing, or a namespace is there that does
                not belong.
        """
        metadata = item.get("metadata") or {}
        api_version, kind = _text(item, "apiVersion"), _text(item, "kind")
        name = _text(metadata, "name", "metadata.name")
        resource = self.resource(api_version, kind)
        chosen = metadata.get("namespace")
        if not resource.namespaced and chosen:
            reason = f"{kind} is cluster-scoped and has no namespace"
            raise ConfigError("metadata.namespace", reason)
        return path(
            api_version,
            resource.plural,
            name,
            namespace=(chosen or namespace) if resource.namespaced else None,
            subresource=subresource,
        )


def _text(item: Mapping[str, Any], key: str, field: str | None = None) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(field or key, "must be set to find the object's path")
    return value
