"""One request and its answer: retries, limits, and errors without secrets.

Owns the connection pool and the keeper of the credentials. The boundary that catches
what urllib3 raises is here, once: errors are rebuilt outside the except block, as the
frames of a failed send hold the token.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from urllib3.exceptions import ClosedPoolError

from kubetls.client.limits import Timeout, require_timeout
from kubetls.client.outgoing import (
    encoded_body,
    header_fields,
    request_target,
    require_method,
    user_agent_text,
)
from kubetls.client.response import Response, translated
from kubetls.client.retry import Retries, require_retries, wait_before_retry
from kubetls.client.status import api_error, warning_texts
from kubetls.credentials.endpoint import ignored_proxies
from kubetls.credentials.keeper import CredentialKeeper
from kubetls.errors import (
    ChainRefused,
    ConfigError,
    ConnectionFailed,
    ConnectTimeout,
    CredentialError,
    KubeTLSError,
    Unauthorized,
    UnexpectedRedirect,
)
from kubetls.transport.connection import Guard, VerifiedPeer
from kubetls.transport.context import LockedContext, locked_context
from kubetls.transport.pool import GuardedPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubetls.client.outgoing import Query
    from kubetls.credentials.config import Config, Generation
    from kubetls.transport.connection import Lease

logger = logging.getLogger("kubetls")

RENEWALS: Final = 3
"""Changes of the credentials that one request follows; each needs other bytes."""

WARNINGS: Final = 256
"""Texts of API warnings remembered, so that each is logged once."""

_exchanges: weakref.WeakSet[Exchange] = weakref.WeakSet()


class Stopped(Exception):
    """A waiter was told to stop."""


class Waiter:
    """How a request waits; streams replace it by one that can be told to stop."""

    def pause(self, seconds: float) -> None:
        """Wait before the next try."""
        time.sleep(seconds)

    def leased(self, lease: Lease) -> None:
        """Learn which connection a try is made on, before it is used."""


_PATIENT: Final = Waiter()


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    target: str
    headers: dict[str, str]
    content: bytes | None
    limits: Timeout
    stream: bool
    waiter: Waiter


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
        self.keeper = CredentialKeeper(config.source)
        self.closed = False
        self._pool_size = pool_size
        self._user_agent = user_agent_text(user_agent, os.uname().machine)
        self._strict_x509 = strict_x509
        self._lock = threading.Lock()
        # The generation a thread's request was begun with: what is sent, and judged.
        self._sending = threading.local()
        self._warned: set[str] = set()
        self._pool_of = self.keeper.generation
        self._pool: GuardedPool | None = self._new_pool(self._pool_of)
        _exchanges.add(self)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self.config.endpoint.url

    def request(  # noqa: PLR0913 - the escape hatch, and its waiter
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
        waiter: Waiter | None = None,
        retries: Retries | None = None,
    ) -> Response:
        """Send a request, and again as far as the table in `retry` allows."""
        require_method(method)
        limits = self.timeout if timeout is None else timeout
        require_timeout(limits)
        request = _Request(
            method,
            path,
            request_target(self.config.endpoint.path_prefix, path, query),
            header_fields(headers, self._user_agent, has_body=body is not None),
            encoded_body(body),
            limits,
            stream,
            waiter or _PATIENT,
        )
        policy = self.retries if retries is None else retries
        require_retries(policy)
        attempt, waited, renewals = 0, 0.0, 0
        while True:
            attempt += 1
            generation = self.keeper.current()
            outcome = self._once(request, generation)
            if isinstance(outcome, Response):
                return outcome
            if renewals < RENEWALS and self._renews(outcome, generation):
                renewals += 1
                continue
            wait = wait_before_retry(
                policy,
                outcome,
                method=method,
                safe_to_double=safe_to_double,
                attempt=attempt,
                waited=waited,
                random=random.random(),  # noqa: S311 - jitter, no secret
            )
            if wait is None:
                raise self._hinted(outcome)
            logger.debug("%s %s: %s; again in %.1f s", method, path, outcome, wait)
            request.waiter.pause(wait)
            waited += wait

    def _once(
        self, request: _Request, generation: Generation
    ) -> Response | KubeTLSError:
        """Make one exchange; errors are returned, so that they hold no frame below."""
        started = time.monotonic()
        failure: Exception | None = None
        response: Response | None = None
        try:
            response = self._sent(request, generation)
            if not request.stream or response.status >= 300:
                response.data  # noqa: B018 - read while the timeout applies
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - the one boundary: translated, redacted
            failure = translated(error, self.server, sent=True)
        finally:
            self._sending.generation = None
        if response is None or failure is not None:
            assert failure is not None  # one of the two is always set
            if not isinstance(failure, KubeTLSError):
                raise failure
            return failure
        logger.debug(
            "%s %s: %d in %.0f ms, audit %s",
            request.method,
            request.path.partition("?")[0],
            response.status,
            1000 * (time.monotonic() - started),
            response.headers.get("Audit-Id", "-"),
        )
        return self._judged(response, request, generation)

    def _sent(self, request: _Request, generation: Generation) -> Response:
        while True:
            pool = self._live_pool()
            self._sending.generation = generation
            try:
                raw = pool.exchange(
                    request.method,
                    request.target,
                    body=request.content,
                    headers=request.headers,
                    connect_timeout=request.limits.connect,
                    read_timeout=request.limits.read,
                    leased=request.waiter.leased,
                )
            except ClosedPoolError:
                # Another thread has just put a pool with newer anchors in its place;
                # nothing was sent. With a closed session the next round says so.
                continue
            return Response(raw, self.server)

    def _judged(
        self, response: Response, request: _Request, generation: Generation
    ) -> Response | KubeTLSError:
        self._surface_warnings(response, generation)
        if response.status < 300:
            return response
        if response.status < 400:
            reason = f"{response.status} redirect; credentials are not carried along"
            return UnexpectedRedirect(self.server, reason, True)
        return api_error(
            response.status,
            response.headers,
            without_token(response.data, generation),
            method=request.method,
            path=request.path.partition("?")[0],
            now=time.time(),
        )

    def _surface_warnings(self, response: Response, generation: Generation) -> None:
        """Log what the server warns of (deprecated versions, unknown fields), once."""
        value = response.headers.get("Warning")
        if value is None:
            return
        shown = without_token(value.encode("latin-1", "replace"), generation)
        for text in warning_texts(shown.decode("latin-1")):
            if text not in self._warned and len(self._warned) < WARNINGS:
                self._warned.add(text)
                logger.warning("%s warns: %s", self.server, text)

    def _hinted(self, error: KubeTLSError) -> KubeTLSError:
        """Say in a connect error that proxy variables are set and not used."""
        if isinstance(error, ConnectTimeout | ConnectionFailed) and not error.sent:
            ignored = ignored_proxies(os.environ)
            if ignored:
                hint = f"; proxies are not used here ({', '.join(ignored)} is set)"
                return type(error)(error.server, error.reason + hint, error.sent)
        return error

    # ------------------------------------------------------------------ credentials

    def _authorization(self, _peer: VerifiedPeer) -> str | None:
        token = self._sending.generation.token
        return None if token is None else f"Bearer {token.reveal()}"

    def _renews(self, outcome: KubeTLSError, refused: Generation) -> bool:
        """Read the credentials again after a refusal; tell whether that may help.

        After a 401 only another token or certificate does: the request was not
        executed, so any method may be sent again. A certification path that is refused
        may be one whose CA has just been published; nothing was sent.
        """
        if isinstance(outcome, Unauthorized):
            fresh = self.keeper.renew(refused)
            return (
                fresh.token != refused.token
                or fresh.client_certificate != refused.client_certificate
            )
        if isinstance(outcome, ChainRefused):
            return self.keeper.renew(refused).anchors != refused.anchors
        return False

    # ------------------------------------------------------------------ connections

    def context(self) -> LockedContext:
        """Build a fresh locked context from the current generation."""
        return self._context(self.keeper.current())

    def _context(self, generation: Generation) -> LockedContext:
        endpoint = self.config.endpoint
        return locked_context(
            generation.anchors,
            endpoint.reference,
            address=endpoint.address,
            client_certificate=generation.client_certificate,
            strict_x509=self._strict_x509,
        )

    def _new_pool(self, generation: Generation) -> GuardedPool:
        context = self._context(generation)
        guard = Guard(self.config.endpoint, context, self._authorization)
        return GuardedPool(guard, self._pool_size)

    def _live_pool(self) -> GuardedPool:
        """Return the pool whose connections were verified by these anchors.

        A changed CA bundle or client certificate means new connections. The old pool
        is closed: what is under way on it ends as it would have, and no connection of
        it is used again.
        """
        with self._lock:
            if self.closed:
                raise ConfigError("session", "is closed")
            # Not the caller's: a slow thread would bring retired anchors back.
            generation = self.keeper.generation
            if self._pool is not None and generation is self._pool_of:
                return self._pool
            retired = self._pool
            if retired is None or not _same_tls(generation, self._pool_of):
                try:
                    self._pool = self._new_pool(generation)
                except CredentialError as error:
                    if retired is None:
                        raise
                    # What OpenSSL does not load is no successor.
                    logger.warning("connections go on with the old ones: %s", error)
                    retired = None
            else:
                retired = None
            self._pool_of = generation
            pool = self._pool
        if retired is not None:
            retired.close()
        assert pool is not None  # set above, or raised
        return pool

    def close(self) -> None:
        """Close idle connections and take no further requests. Idempotent."""
        with self._lock:
            self.closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def after_fork(self) -> None:
        """In a forked child: start with connections of its own.

        The locks may have been held by threads that are gone.
        """
        self._lock = threading.Lock()
        self.keeper.after_fork()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.discard()


def _same_tls(one: Generation, other: Generation) -> bool:
    return (
        one.anchors == other.anchors
        and one.client_certificate == other.client_certificate
    )


def without_token(told: bytes, generation: Generation) -> bytes:
    """Return what a server says without the token it was sent.

    Proxies repeat the header of a request they do not like, and errors are logged.
    """
    token = generation.token
    return told if token is None else told.replace(token.reveal().encode(), b"[hidden]")


def _forget_connections() -> None:
    for exchange in list(_exchanges):
        exchange.after_fork()


os.register_at_fork(after_in_child=_forget_connections)
