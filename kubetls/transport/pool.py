"""A pool of guarded connections to one API server; urllib3 does the HTTP.

urllib3's own retries and redirects are off: it repeats POSTs after TLS failures and
carries credentials along. Proxies do not exist here; urllib3 reads none from the
environment.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any, NoReturn, cast

from urllib3 import HTTPSConnectionPool, Retry
from urllib3.util import Timeout
from urllib3.util.connection import is_connection_dropped

from kubetls.errors import ContextRefused
from kubetls.transport.connection import Guard, VerifiedConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from urllib3 import BaseHTTPResponse

    from kubetls.transport.connection import Lease


class GuardedPool(HTTPSConnectionPool):
    """Connections that verify their server before anything is sent.

    Args:
        guard: Endpoint, locked context and the source of the header.
        size: Idle connections kept; more may be open at a time.
    """

    ConnectionCls = VerifiedConnection

    def __init__(self, guard: Guard, size: int) -> None:
        self._guard = guard
        self._waiting = threading.local()
        super().__init__(
            guard.endpoint.address.url_host,
            guard.endpoint.port,
            maxsize=size,
            block=False,
            retries=Retry(0, redirect=False, raise_on_redirect=False),
            guard=guard,
        )

    def discard(self) -> None:
        """In a forked child: close the inherited connections, send nothing on them.

        Only the forking thread lives on, and another may have held the queue's lock:
        the queue is made anew before anything asks it, the finalizer included.
        """
        inherited = self.pool
        if inherited is None:
            return
        connections = list(inherited.queue)
        inherited.__init__(inherited.maxsize)  # type: ignore[misc]  # new lock, empty
        for connection in filter(None, connections):
            connection.close()

    def _prepare_proxy(self, conn: Any) -> NoReturn:
        raise ContextRefused("urllib3", "tunnels and proxies are not used here")

    def _get_conn(self, timeout: float | None = None) -> VerifiedConnection:
        connection = cast("VerifiedConnection", super()._get_conn(timeout))
        try:
            lease = connection.lease()
            # A late interrupt of the request before may have come after the pool's
            # check.
            if connection.sock is not None and is_connection_dropped(connection):
                connection.close()
            leased = getattr(self._waiting, "leased", None)
            if leased is not None:
                leased(lease)
        except BaseException:
            # Out of the pool already, and not yet anybody's who would close it.
            connection.close()
            raise
        return connection

    def _put_conn(self, conn: Any) -> None:
        queue = self.pool
        super()._put_conn(conn)
        if queue is not None and self.pool is None:
            # Closed in between: what came into the queue after it was emptied is
            # nobody's any more.
            with suppress(Empty):
                while True:
                    late = queue.get(block=False)
                    if late is not None:
                        late.close()

    def exchange(
        self,
        method: str,
        target: str,
        *,
        body: bytes | None,
        headers: dict[str, str],
        connect_timeout: float | None,
        read_timeout: float | None,
        leased: Callable[[Lease], None] | None = None,
    ) -> BaseHTTPResponse:
        """Send one request and return the response with its body unread.

        Args:
            method: HTTP method.
            target: Path and query.
            body: The body, None for none.
            headers: The header, without Authorization.
            connect_timeout: Seconds for TCP and TLS, each step.
            read_timeout: Seconds between two arrivals of data.
            leased: Called with the hold on the connection before it is used.
        """
        # urlopen passes nothing on to where connections are chosen.
        self._waiting.leased = leased
        return self.urlopen(
            method,
            target,
            body=body,
            headers=headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=Timeout(connect=connect_timeout, read=read_timeout),
            preload_content=False,
            decode_content=False,
        )
