"""Lists, page by page: one consistent snapshot, or an error, never a part of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from kubetls.errors import Expired

if TYPE_CHECKING:
    from collections.abc import Iterator


class Get(Protocol):
    """How a page is fetched."""

    def __call__(self, path: str, query: dict[str, object]) -> dict[str, Any]:
        """Return the parsed body."""
        ...


class Listing:
    """Iterator over the objects of a collection.

    When the snapshot expires between two pages, the list starts again, whole and
    without pages; objects that were handed out already come again in that case only
    if they still exist, so consumers key by namespace and name, as they must anyway.

    Attributes:
        resource_version: Of the list; None before the first page.
    """

    def __init__(
        self,
        get: Get,
        path: str,
        *,
        labels: str | None,
        fields: str | None,
        limit: int,
    ) -> None:
        self._get = get
        self._path = path
        self._query: dict[str, object] = {
            "labelSelector": labels,
            "fieldSelector": fields,
        }
        self._limit = limit
        self._objects = self._pages()
        self.resource_version: str | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._objects)

    def _pages(self) -> Iterator[dict[str, Any]]:
        token: str | None = None
        limit: int | None = self._limit
        while True:
            query = self._query | {"limit": limit, "continue": token}
            try:
                page = self._get(self._path, query)
            except Expired:
                if token is None:
                    raise
                token, limit = None, None
                continue
            metadata = page.get("metadata") or {}
            self.resource_version = metadata.get("resourceVersion")
            yield from _typed_items(page)
            token = metadata.get("continue")
            if not token:
                return


def _typed_items(page: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the items with the apiVersion and kind that lists leave out."""
    kind = str(page.get("kind", "")).removesuffix("List")
    version = page.get("apiVersion")
    for item in page.get("items") or ():
        item.setdefault("apiVersion", version)
        item.setdefault("kind", kind)
        yield item
