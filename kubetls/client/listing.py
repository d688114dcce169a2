"""Lists, page by page: one consistent snapshot, or an error, never a part of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from kubetls.client.decoding import NotDecoded
from kubetls.errors import ConfigError, Expired, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kubetls.client.decoding import Decoding, Page
    from kubetls.client.exchange import Waiter

T = TypeVar("T")


class Fetch(Protocol):
    """How the bytes of a page are fetched."""

    def __call__(
        self,
        path: str,
        query: Mapping[str, object],
        *,
        waiter: Waiter | None = None,
    ) -> bytes:
        """Return the body."""
        ...


@dataclass(frozen=True, slots=True)
class Collection(Generic[T]):
    """Which objects: a path, selectors, and how they are decoded."""

    path: str
    labels: str | None
    fields: str | None
    decoding: Decoding[T]

    @property
    def selectors(self) -> dict[str, object]:
        """Return the query parameters that select."""
        return {"labelSelector": self.labels, "fieldSelector": self.fields}


class Listing(Generic[T]):
    """Iterator over the objects of a collection.

    When the snapshot expires between two pages (etcd compacts every five minutes by
    default), the list begins again, whole and without pages. Objects may then come
    twice; `by_name` knows which of the first pages are gone.

    Attributes:
        resource_version: Of the list; None before the first page.
    """

    def __init__(
        self,
        fetch: Fetch,
        collection: Collection[T],
        limit: int | None,
        waiter: Waiter | None = None,
    ) -> None:
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ConfigError("limit", "a whole number of objects, 1 or more")
        self._fetch = fetch
        self._collection = collection
        self._limit = limit
        self._waiter = waiter
        self._items = self._each()
        self.resource_version: str | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return next(self._items)

    def by_name(self) -> dict[tuple[str, str], T]:
        """Fetch the whole list; return it by (namespace, name).

        If the list began again midway, what only the first pages had is left out.
        """
        key = self._collection.decoding.key
        found: dict[tuple[str, str], T] = {}
        for first, page in self._pages():
            if first:
                found.clear()
            found.update((key(item), item) for item in page.items)
        return found

    def _each(self) -> Iterator[T]:
        for _, page in self._pages():
            # Reversed and popped, so that what was handed out is not kept here.
            items = page.items[::-1]
            page.items.clear()
            while items:
                yield items.pop()

    def _pages(self) -> Iterator[tuple[bool, Page[T]]]:
        """Yield the pages, and of each whether it begins the list (again)."""
        token, limit = "", self._limit
        first, again = True, False
        while True:
            try:
                page = self._page(limit, token)
            except Expired:
                # Once: a server that pages all the same would have no end of it.
                if not token or again:
                    raise
                # From here on whole, without pages: that is one consistent snapshot.
                token, limit, first, again = "", None, True, True
                continue
            if token and page.continue_token == token:
                reason = "the same continue token again; the list would never end"
                raise ProtocolError(self._collection.path, reason, True)
            self.resource_version = page.resource_version
            token = page.continue_token
            yield first, page
            first = False
            if not token:
                return

    def _page(self, limit: int | None, token: str) -> Page[T]:
        path = self._collection.path
        query = {"limit": limit, "continue": token or None}
        body = self._fetch(
            path, self._collection.selectors | query, waiter=self._waiter
        )
        try:
            return self._collection.decoding.page(body)
        except NotDecoded as error:
            raise ProtocolError(
                path, f"no list of these objects: {error}", True
            ) from None
