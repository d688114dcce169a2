"""One request and its answer: headers, retries, limits, and errors without secrets.

Owns the connection pool and the current generation of credentials. The boundary that
catches what urllib3 raises is here, once: errors are rebuilt outside the except block,
as the frames of a failed send hold the token.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import re
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from kubetls.client.response import Response, translated
from kubetls.client.retry import Retries, wait_before_retry
from kubetls.client.status import api_error
from kubetls.errors import (
    ConfigError,
    KubeTLSError,
    Unauthorized,
    UnexpectedRedirect,
)
from kubetls.transport.connection import Guard, VerifiedPeer
from kubetls.transport.context import LockedContext, locked_context
from kubetls.transport.pool import GuardedPool

if TYPE_CHECKING:
    from kubetls.credentials.config import Config, Generation

VERSION: Final = "0.1.0"

logger = logging.getLogger("kubetls")

Query = Mapping[str, object] | None

# The target of a request: an absolute path, and never "//host", which HTTP clients
# take for another authority.
_PATH: Final = re.compile(r"/(?!/)[!-\"$-~]*\Z")

_OWN_HEADERS: Final = frozenset({"authorization", "host", "proxy-authorization"})

_exchanges: weakref.WeakSet[Exchange] = weakref.WeakSet()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """Seconds that one exchange may take in each phase; None waits for ever.

    Attributes:
        connect: TCP and TLS together with each of their steps.
        read: Between two arrivals of data. The API server ends requests after 60 s.
    """

    connect: float | None = 10.0
    read: float | None = 60.0


class Exchange:
    """Requests to one API server with one identity; thread-safe."""

    def __init__(
        self,
        config: Config,
        *,
        timeout: Timeout,
        retries: Retries,
        pool_size: int,
        user_agent: str | None,
        strict_x509: bool,
    ) -> None:
        self.config = config
        self.timeout = timeout
        self.retries = retries
        self._pool_size = pool_size
        self._user_agent = _user_agent(user_agent)
        self._strict_x509 = strict_x509
        self.generation: Generation = config.source.read()
        self._lock = threading.Lock()
        self.closed = False
        self._pool: GuardedPool | None = self._new_pool()
        _exchanges.add(self)

    @property
    def server(self) -> str:
        """URL of the API server, without a path prefix's secrets: it has none."""
        return self.config.endpoint.url

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        query: Query = None,
        *,
        stream: bool = False,
        timeout: Timeout | None = None,
        safe_to_double: bool = False,
    ) -> Response:
        """Send a request, and again as far as the table in `retry` allows."""
        target = self._target(path, query)
        chosen = self._headers(headers, body)
        content = body if body is None or isinstance(body, bytes) else _json(body)
        limits = timeout or self.timeout
        attempt, waited, renewed = 0, 0.0, False
        while True:
            attempt += 1
            outcome = self._once(method, target, content, chosen, limits, stream=stream)
            if isinstance(outcome, Response):
                return outcome
            if isinstance(outcome, Unauthorized) and not renewed:
                renewed = True
                if self._renew():
                    continue
            wait = wait_before_retry(
                self.retries,
                outcome,
                method=method,
                safe_to_double=safe_to_double,
                attempt=attempt,
                waited=waited,
                random=random.random(),  # noqa: S311 - jitter, no secret
            )
            if wait is None:
                raise outcome
            logger.debug("%s %s: %s; again in %.1f s", method, path, outcome, wait)
            time.sleep(wait)
            waited += wait

    def _once(
        self,
        method: str,
        target: str,
        content: bytes | None,
        headers: dict[str, str],
        limits: Timeout,
        *,
        stream: bool,
    ) -> Response | KubeTLSError:
        """Make one exchange; errors are returned, so that they hold no frame below."""
        started = time.monotonic()
        failure: KubeTLSError | None = None
        response: Response | None = None
        try:
            raw = self._live_pool().exchange(
                method,
                target,
                body=content,
                headers=headers,
                connect_timeout=limits.connect,
                read_timeout=limits.read,
            )
            response = Response(raw, self.server)
            if not stream or response.status >= 300:
                response.data  # noqa: B018 - read while the timeout applies
        except Exception as error:  # noqa: BLE001 - the one boundary: translated, redacted
            failure = translated(error, self.server, sent=True)
        if response is None or failure is not None:
            assert failure is not None  # one of the two is always set
            return failure
        logger.debug(
            "%s %s: %d in %.0f ms, audit %s",
            method,
            target.partition("?")[0],
            response.status,
            1000 * (time.monotonic() - started),
            response.headers.get("Audit-Id", "-"),
        )
        return self._judged(response, method, target.partition("?")[0])

    def _judged(
        self, response: Response, method: str, path: str
    ) -> Response | KubeTLSError:
        if response.status < 300:
            return response
        if response.status < 400:
            reason = f"{response.status} redirect; credentials are not carried along"
            return UnexpectedRedirect(self.server, reason, True)
        return api_error(
            response.status,
            response.headers,
            response.data,
            method=method,
            path=path,
            now=time.time(),
        )

    def _target(self, path: str, query: Query) -> str:
        if not _PATH.match(path):
            raise ConfigError(
                "path", "must be absolute, printable ASCII, and no //host"
            )
        target = self.config.endpoint.path_prefix + path
        wanted = {
            key: value for key, value in (query or {}).items() if value is not None
        }
        if not wanted:
            return target
        return f"{target}{'&' if '?' in path else '?'}{urlencode(wanted)}"

    def _headers(self, headers: Mapping[str, str] | None, body: Any) -> dict[str, str]:
        chosen = {
            # Some endpoints are JSON by another name (key sets of the issuer).
            "Accept": "application/json, */*;q=0.5",
            "Accept-Encoding": "identity",
            "User-Agent": self._user_agent,
        }
        if body is not None:
            chosen["Content-Type"] = "application/json"
        for name, value in (headers or {}).items():
            if name.lower() in _OWN_HEADERS:
                raise ConfigError(f"headers[{name}]", "is the session's to set")
            if not all(" " <= char <= "~" for char in value):
                raise ConfigError(f"headers[{name}]", "has control characters")
            chosen[name] = value
        return chosen

    # ------------------------------------------------------------------ credentials

    def _authorization(self, _peer: VerifiedPeer) -> str | None:
        token = self.generation.token
        return None if token is None else f"Bearer {token.reveal()}"

    def _renew(self) -> bool:
        """Read the credentials again after a 401; tell whether the token changed."""
        try:
            fresh = self.config.source.read()
        except KubeTLSError as error:
            logger.warning("credentials could not be read again: %s", error)
            return False
        with self._lock:
            changed = fresh.token != self.generation.token
            if changed:
                self.generation = fresh
        return changed

    # ------------------------------------------------------------------ connections

    def context(self) -> LockedContext:
        """Build a fresh locked context from the current generation."""
        endpoint, generation = self.config.endpoint, self.generation
        return locked_context(
            generation.anchors,
            endpoint.reference,
            address=endpoint.address,
            client_certificate=generation.client_certificate,
            strict_x509=self._strict_x509,
        )

    def _new_pool(self) -> GuardedPool:
        guard = Guard(self.config.endpoint, self.context(), self._authorization)
        return GuardedPool(guard, self._pool_size)

    def _live_pool(self) -> GuardedPool:
        with self._lock:
            if self.closed:
                raise ConfigError("session", "is closed")
            if self._pool is None:
                self._pool = self._new_pool()
            return self._pool

    def close(self) -> None:
        """Close idle connections and take no further requests. Idempotent."""
        with self._lock:
            self.closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def after_fork(self) -> None:
        """In a forked child: start with connections of its own.

        The old pool is not closed: its locks may have been held by threads that are
        gone. The parent's connections are of no use here, their sockets refuse.
        """
        self._lock = threading.Lock()
        self._pool = None


def _forget_connections() -> None:
    for exchange in list(_exchanges):
        exchange.after_fork()


os.register_at_fork(after_in_child=_forget_connections)


def _json(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _user_agent(caller: str | None) -> str:
    system = f"{sys.platform}/{platform.machine()}"
    python = ".".join(map(str, sys.version_info[:2]))
    ours = f"kubetls/{VERSION} ({system}) python/{python}"
    if caller is None:
        return ours
    if (
        not caller
        or len(caller) > 256
        or not all(" " <= char <= "~" for char in caller)
    ):
        raise ConfigError("user_agent", "must be 1 to 256 printable characters")
    return f"{caller} {ours}"
