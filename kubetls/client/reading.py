"""What lists and streams are read by: GET requests of one exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubetls.client.limits import Timeout
from kubetls.client.retry import Retries

if TYPE_CHECKING:
    from kubetls.client.exchange import Exchange, Waiter
    from kubetls.client.outgoing import Query
    from kubetls.client.response import Response

# Streams have a back-off of their own; two would multiply.
_ONCE: Final = Retries(attempts=0)


class Reader:
    """Reads pages, and opens watches and logs.

    Args:
        exchange: The session's.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def body(self, path: str, query: Query, *, waiter: Waiter | None = None) -> bytes:
        """Return a page's bytes; see `Fetch`."""
        return self._get(path, query, waiter).data

    def stream(
        self,
        path: str,
        query: Query,
        *,
        read_timeout: float | None,
        waiter: Waiter | None = None,
    ) -> Response:
        """Return a response whose body is unread; see `OpenStream`."""
        timeout = Timeout(connect=self._exchange.timeout.connect, read=read_timeout)
        return self._get(path, query, waiter, timeout, stream=True)

    def _get(
        self,
        path: str,
        query: Query,
        waiter: Waiter | None,
        timeout: Timeout | None = None,
        *,
        stream: bool = False,
    ) -> Response:
        return self._exchange.request(
            "GET",
            path,
            query=query,
            stream=stream,
            timeout=timeout,
            waiter=waiter,
            retries=None if waiter is None else _ONCE,
        )
