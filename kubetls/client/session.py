"""The session: who I am, who that server is, and what it says.

Thread-safe and lazy: the configuration is read and parsed at once, connections are
made by the first request. Plain dicts in, plain dicts out. Nothing here starts a
thread.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from kubetls.client.exchange import Exchange, Query, Timeout, logger
from kubetls.client.listing import Listing
from kubetls.client.logs import log_lines
from kubetls.client.retry import Retries
from kubetls.client.watch import ListWatch, Watch
from kubetls.credentials.choose import choose
from kubetls.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kubetls.client.response import Response
    from kubetls.credentials.config import Config

PATCH_TYPES: Final = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


class Session:
    """A conversation with one API server; made by `session()`.

    Attributes:
        config: Where the server is and where credentials come from.
        namespace: Default namespace.
    """

    def __init__(self, exchange: Exchange, namespace: str) -> None:
        self._exchange = exchange
        self.config: Config = exchange.config
        self.namespace = namespace
        logger.info("session: %s, server %s", self.config.origin, self.server)

    # ------------------------------------------------------------------ facts

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self._exchange.server

    @property
    def token_expires_at(self) -> float | None:
        """Seconds since the epoch at which the token ends, by its own word.

        None without a token, and for tokens that do not say.
        """
        token = self._exchange.generation.token
        return token.expires_at if token is not None else None

    def __repr__(self) -> str:
        closed = ", closed" if self._exchange.closed else ""
        return f"<Session {self.server} ({self.config.origin}{closed})>"

    # ------------------------------------------------------------------ verbs

    def get(
        self, path: str, query: Query = None, *, timeout: Timeout | None = None
    ) -> dict[str, Any]:
        """Get one object (or one page of a list) as a dict."""
        return self._verb("GET", path, query=query, timeout=timeout)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        query: Query = None,
        *,
        dry_run: bool = False,
        field_manager: str | None = None,
        timeout: Timeout | None = None,
    ) -> dict[str, Any]:
        """Create an object and return it as the server stored it."""
        query = _write_query(query, field_manager, dry_run=dry_run)
        return self._verb("POST", path, body=body, query=query, timeout=timeout)

    def put(
        self,
        path: str,
        body: Mapping[str, Any],
        query: Query = None,
        *,
        dry_run: bool = False,
        field_manager: str | None = None,
        timeout: Timeout | None = None,
    ) -> dict[str, Any]:
        """Replace an object; its resourceVersion, if any, is the precondition."""
        query = _write_query(query, field_manager, dry_run=dry_run)
        metadata = body.get("metadata")
        safe = bool(metadata.get("resourceVersion")) if metadata else False
        return self._verb(
            "PUT", path, body=body, query=query, timeout=timeout, safe_to_double=safe
        )

    def patch(
        self,
        path: str,
        body: Any,
        type: Literal["merge", "json", "strategic", "apply"] = "merge",  # noqa: A002 - the API's own word
        field_manager: str | None = None,
        *,
        force: bool = False,
        query: Query = None,
        dry_run: bool = False,
        timeout: Timeout | None = None,
    ) -> dict[str, Any]:
        """Change parts of an object.

        Raises:
            ConfigError: An unknown type, or "apply" without a field manager.
        """
        if type not in PATCH_TYPES:
            raise ConfigError("type", f"must be one of {', '.join(PATCH_TYPES)}")
        if type == "apply" and not field_manager:
            raise ConfigError("field_manager", "server-side apply needs one")
        query = _write_query(query, field_manager, dry_run=dry_run)
        if force:
            query = {**query, "force": "true"}
        headers = {"Content-Type": PATCH_TYPES[type]}
        return self._verb(
            "PATCH", path, body=body, query=query, headers=headers, timeout=timeout
        )

    def delete(
        self,
        path: str,
        propagation: Literal["Foreground", "Background", "Orphan"] | None = None,
        grace: int | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        *,
        query: Query = None,
        dry_run: bool = False,
        timeout: Timeout | None = None,
    ) -> dict[str, Any]:
        """Delete an object.

        Args:
            path: The object's path.
            propagation: What happens to its dependents; None is the kind's default.
            grace: Seconds; 0 is at once, None is the object's own period.
            uid: Delete only this incarnation (Conflict otherwise).
            resource_version: Delete only this version (Conflict otherwise).
            query: Further query parameters.
            dry_run: Validate without doing it.
            timeout: Replaces the session's timeouts.
        """
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if propagation is not None:
            options["propagationPolicy"] = propagation
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        if wanted := {key: value for key, value in preconditions.items() if value}:
            options["preconditions"] = wanted
        if dry_run:
            options["dryRun"] = ["All"]
        return self._verb(
            "DELETE",
            path,
            body=options,
            query=query,
            timeout=timeout,
            safe_to_double=uid is not None,
        )

    def list(
        self,
        path: str,
        labels: str | None = None,
        fields: str | None = None,
        limit: int = 500,
    ) -> Listing:
        """Iterate over all objects of a collection, page by page.

        Args:
            path: The collection's path.
            labels: Label selector.
            fields: Field selector.
            limit: Objects asked for at a time.

        Returns:
            An iterator of dicts, each with apiVersion and kind; `.resource_version`
            is that of the list once the first page has arrived.
        """
        return Listing(self.get, path, labels=labels, fields=fields, limit=limit)

    def watch(
        self,
        path: str,
        resource_version: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
    ) -> Watch:
        """Follow a collection from a resource version on; see `Watch`."""
        return Watch(
            self._stream,
            path,
            resource_version=resource_version,
            labels=labels,
            fields=fields,
        )

    def list_watch(
        self, path: str, labels: str | None = None, fields: str | None = None
    ) -> ListWatch:
        """List a collection and follow it across expiry, cuts and restarts."""
        return ListWatch(self.list, self._stream, path, labels=labels, fields=fields)

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: int | None = None,
        timestamps: bool = False,
        previous: bool = False,
    ) -> Iterator[bytes]:
        """Iterate over a container's log lines, without their newlines.

        Args:
            namespace: The pod's namespace.
            pod: The pod's name.
            container: Needed when the pod has several.
            follow: Go on until the container ends.
            tail: Only that many of the last lines.
            since: Only lines of the last so many seconds.
            timestamps: Begin each line with its time.
            previous: The log of the container before its restart.

        Raises:
            WatchClosed: The stream was cut, as opposed to ended.
        """
        options = {
            "container": container,
            "follow": "true" if follow else None,
            "tailLines": tail,
            "sinceSeconds": since,
            "timestamps": "true" if timestamps else None,
            "previous": "true" if previous else None,
        }
        return log_lines(self._stream, namespace, pod, options, follow=follow)

    # ------------------------------------------------------------------ any request

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
        """Send any request with the same guards; the escape hatch.

        Args:
            method: HTTP method.
            path: Absolute path, without the server's path prefix.
            body: bytes as they are, anything else as JSON.
            headers: Further headers. Authorization is refused: it is the session's.
            query: Query parameters; None values are left out.
            stream: Leave the body unread, for `Response.stream`.
            timeout: Replaces the session's timeouts.
            safe_to_double: A precondition in the request makes a repetition harmless.

        Raises:
            ApiError: The server answered with a status of 400 or more.
            TransportError: No usable answer came.
            IdentityMismatch, CertificateError, ChainRefused: The server was refused.
        """
        return self._exchange.request(
            method,
            path,
            body,
            headers,
            query,
            stream=stream,
            timeout=timeout,
            safe_to_double=safe_to_double,
        )

    def _stream(
        self, path: str, query: Query, *, read_timeout: float | None
    ) -> Response:
        timeout = Timeout(connect=self._exchange.timeout.connect, read=read_timeout)
        return self.request("GET", path, query=query, stream=True, timeout=timeout)

    def _verb(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        parsed = self.request(method, path, **kwargs).json()
        return parsed if isinstance(parsed, dict) else {"value": parsed}

    # ------------------------------------------------------------------ life

    def close(self) -> None:
        """Close idle connections; the session takes no further requests."""
        self._exchange.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def session(
    config: Config | None = None,
    *,
    namespace: str | None = None,
    timeout: Timeout = Timeout(),  # noqa: B008 - frozen
    retries: Retries = Retries(),  # noqa: B008 - frozen
    pool_size: int = 10,
    user_agent: str | None = None,
    strict_x509: bool = False,
) -> Session:
    """Open a session with the API server.

    Args:
        config: From `in_cluster()` or `kubeconfig()`. None chooses: $KUBECONFIG if
            set, else in-cluster when KUBERNETES_SERVICE_HOST is set, else
            ~/.kube/config. The choice is logged at INFO and stands in `repr`.
        namespace: Replaces the config's default namespace.
        timeout: Connect and read timeouts, in seconds.
        retries: When and how often a request is repeated.
        pool_size: Idle connections kept.
        user_agent: Name and version of the calling program, put before ours.
        strict_x509: Demand every detail of the certificate profile (RFC 5280), which
            many clusters' own CAs lack. Off by default, the same on every Python.

    Raises:
        NotInCluster: No configuration applies; names every place looked at.
        ConfigError, CredentialError: The one that applies is malformed.
    """
    chosen = config if config is not None else choose(os.environ)
    exchange = Exchange(
        chosen,
        timeout=timeout,
        retries=retries,
        pool_size=pool_size,
        user_agent=user_agent,
        strict_x509=strict_x509,
    )
    return Session(exchange, namespace or chosen.namespace)


def _write_query(
    query: Query, field_manager: str | None, *, dry_run: bool
) -> dict[str, object]:
    chosen = dict(query or {})
    if dry_run:
        chosen["dryRun"] = "All"
    if field_manager:
        chosen["fieldManager"] = field_manager
    return chosen
