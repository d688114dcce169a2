"""The session: who I am, who that server is, and what it says.

Thread-safe and lazy: the configuration is read and parsed at once, connections are
made by the first request. Plain dicts in, plain dicts out. Nothing here starts a
thread.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from kubetls.client.discovery import Discovery
from kubetls.client.exchange import Exchange, logger
from kubetls.client.limits import Timeout, require_timeout
from kubetls.client.logs import log_lines
from kubetls.client.reading import Reader
from kubetls.client.retry import Retries, require_retries
from kubetls.client.updating import update_object
from kubetls.client.verbs import Verbs, write_query
from kubetls.client.waiting import field_of_name, wait_for
from kubetls.credentials.choose import choose
from kubetls.credentials.config import Config
from kubetls.credentials.endpoint import is_namespace
from kubetls.errors import ConfigError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

    from kubetls.client.list_watch import ListWatch
    from kubetls.client.listing import Collection, Listing
    from kubetls.client.outgoing import Query
    from kubetls.client.watch import Watch

T = TypeVar("T")


class Session(Verbs):
    """A conversation with one API server; made by `session()`.

    Attributes:
        config: Where the server is and where credentials come from.
        namespace: Default namespace.
    """

    def __init__(self, exchange: Exchange, namespace: str) -> None:
        super().__init__(exchange)
        self.config: Config = exchange.config
        self.namespace = namespace
        self._discovery = Discovery(self.get)
        self._reader = Reader(exchange)
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
        token = self._exchange.keeper.current().token
        return token.expires_at if token is not None else None

    def __repr__(self) -> str:
        closed = ", closed" if self._exchange.closed else ""
        return f"<Session {self.server} ({self.config.origin}{closed})>"

    # ------------------------------------------------------------------ objects

    def apply(
        self,
        obj: Mapping[str, Any],
        field_manager: str,
        force: bool = False,  # noqa: FBT001, FBT002 - the contract's order
        subresource: str | None = None,
        *,
        dry_run: bool = False,
        query: Query = None,
        timeout: Timeout | None = None,
    ) -> dict[str, Any]:
        """Create an object or change the fields it names (server-side apply).

        Args:
            obj: Has apiVersion, kind, metadata.name, and the fields to own. Without
                a namespace, the session's.
            field_manager: Who owns these fields from now on.
            force: Take fields over from other managers; else that is a Conflict.
            subresource: "status" and the like.
            dry_run: Validate without doing it.
            query: Further query parameters.
            timeout: Replaces the session's timeouts.

        Raises:
            ConfigError: The kind is not served, or a needed field is missing.
            NotFound: Nor is its apiVersion: a definition may not be installed.
            Conflict: Another manager owns a field that would change.
        """
        return self.patch(
            self._discovery.path_of(obj, self.namespace, subresource),
            obj,
            type="apply",
            field_manager=field_manager,
            force=force,
            dry_run=dry_run,
            query=query,
            timeout=timeout,
        )

    def update(
        self,
        path: str,
        fn: Callable[[dict[str, Any]], dict[str, Any] | None],
        attempts: int = 5,
        *,
        dry_run: bool = False,
        field_manager: str | None = None,
        query: Query = None,
        timeout: Timeout | None = None,
    ) -> dict[str, Any]:
        """Get an object, change it, put it back; again when somebody was faster.

        Args:
            path: The object's path.
            fn: Changes the dict it is given, or returns another. Called again, on
                the new state, after a conflict, so each change is made once.
            attempts: Tries in all.
            dry_run: Validate without doing it.
            field_manager: Name of the writer.
            query: Further query parameters of the put.
            timeout: Replaces the session's timeouts.

        Returns:
            The object as the server stored it.

        Raises:
            Conflict: It was changed by others in between, every time.
            ConnectionFailed: The connection was lost when the change was under way:
                it may have been made. Not sent again: a conflict with our own change
                would have `fn` make it twice.
            ConfigError: `fn` took the resourceVersion out, or returned no object.
        """
        chosen = write_query(query, field_manager, None, dry_run=dry_run)

        def put(wanted: dict[str, Any]) -> dict[str, Any]:
            return self._verb("PUT", path, body=wanted, query=chosen, timeout=timeout)

        get = partial(self.get, path, timeout=timeout)
        return update_object(get, put, fn, attempts)

    def wait(
        self,
        path: str,
        until: Callable[[dict[str, Any] | None], bool] | str,
        timeout: float,
    ) -> dict[str, Any] | None:
        """Wait until an object is as wanted; watches, does not poll.

        Args:
            path: The object's path. Needs list and watch on its collection.
            until: A predicate on the object (None while there is none), or
                "condition=TYPE[=STATUS]", "create", "delete" as for `kubectl wait`.
            timeout: Seconds.

        Returns:
            The object; None when it is as wanted by not being there.

        Raises:
            WaitTimeout: It was not, in time; says what was seen last.
            ConfigError: The path names no object, or an argument is none.
        """
        collection, _, name = path.rpartition("/")
        watch = self.list_watch(collection, fields=field_of_name(name))
        return wait_for(watch, path, until, timeout)

    # ------------------------------------------------------------------ streams

    @overload
    def list(
        self,
        path: str,
        labels: str | None = None,
        fields: str | None = None,
        limit: int | None = 500,
        decoder: None = None,
    ) -> Listing[dict[str, Any]]: ...

    @overload
    def list(
        self,
        path: str,
        labels: str | None = None,
        fields: str | None = None,
        limit: int | None = 500,
        *,
        decoder: type[T],
    ) -> Listing[T]: ...

    def list(
        self,
        path: str,
        labels: str | None = None,
        fields: str | None = None,
        limit: int | None = 500,
        decoder: type[Any] | None = None,
    ) -> Listing[Any]:
        """Iterate over all objects of a collection, page by page.

        Args:
            path: The collection's path.
            labels: Label selector.
            fields: Field selector.
            limit: Objects asked for at a time; None for all at once.
            decoder: A msgspec.Struct type for one item, in place of dicts: only the
                fields it names are built. Its `metadata` is a Struct with name,
                namespace, uid and resourceVersion. A TypedDict of that shape makes
                dicts with these fields alone.

        Returns:
            An iterator of dicts, each with apiVersion and kind, or of what the
            decoder makes; `.resource_version` is that of the list once the first
            page has arrived.
        """
        from kubetls.client.listing import Listing

        collection = _collection(path, labels, fields, decoder)
        return Listing(self._reader.body, collection, limit)

    def watch(
        self,
        path: str,
        resource_version: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
        decoder: type[Any] | None = None,
    ) -> Watch:
        """Follow a collection from a resource version on; see `Watch`."""
        from kubetls.client.watch import Watch

        collection = _collection(path, labels, fields, decoder)
        return Watch(self._reader.stream, collection, resource_version)

    def list_watch(
        self,
        path: str,
        labels: str | None = None,
        fields: str | None = None,
        decoder: type[Any] | None = None,
        *,
        send_initial_events: bool = False,
    ) -> ListWatch:
        """List a collection and follow it across expiry, cuts and restarts.

        Args:
            path: The collection's path.
            labels: Label selector.
            fields: Field selector.
            decoder: As for `list`.
            send_initial_events: Take what exists from the watch itself, where the
                server offers it (1.32 and later); spares it the memory of lists.
        """
        from kubetls.client.list_watch import ListWatch

        collection = _collection(path, labels, fields, decoder)
        read = self._reader
        return ListWatch(
            read.body, read.stream, collection, streams=send_initial_events
        )

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str | None = None,
        follow: bool = False,  # noqa: FBT001, FBT002 - the contract's order, to the end
        tail: int | None = None,
        since: int | None = None,
        timestamps: bool = False,  # noqa: FBT001, FBT002
        previous: bool = False,  # noqa: FBT001, FBT002
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
            "follow": follow or None,
            "tailLines": tail,
            "sinceSeconds": since,
            "timestamps": timestamps or None,
            "previous": previous or None,
        }
        return log_lines(self._reader.stream, namespace, pod, options, follow=follow)

    # ------------------------------------------------------------------ other stacks

    def ssl_context(self) -> ssl.SSLContext:
        """Return a locked context for a library that brings its own HTTP.

        A fresh one each time, for this server only, with the trust anchors and the
        client certificate as they are now. It verifies as this session does, on
        blocking sockets and asyncio alike, and refuses to be weakened or extended
        (`ContextRefused`). Make connections anew when the cluster's CA may have
        changed.
        """
        return self._exchange.context()

    def authorization(self) -> str | None:
        """Return the Authorization header's value, read again in time; a secret.

        For requests to `server` over `ssl_context()` alone: anybody else who gets it
        is this session. Ask for it with each request, as tokens are replaced. None
        for sessions without a token.
        """
        token = self._exchange.keeper.current().token
        return None if token is None else f"Bearer {token.reveal()}"

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
        ConfigError, CredentialError: The one that applies is malformed, or an
            argument is.
    """
    if config is not None and not isinstance(config, Config):
        raise ConfigError("config", "from kubetls.kubeconfig() or kubetls.in_cluster()")
    require_timeout(timeout)
    require_retries(retries)
    if type(pool_size) is not int or pool_size < 1:
        raise ConfigError("pool_size", "a whole number of connections, 1 or more")
    if namespace and not is_namespace(namespace):
        raise ConfigError("namespace", "must be an RFC 1123 label")
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


def _collection(
    path: str, labels: str | None, fields: str | None, decoder: type[Any] | None
) -> Collection[Any]:
    # msgspec is loaded with the first list: not everybody's program makes one.
    from kubetls.client.decoding import Decoding
    from kubetls.client.listing import Collection

    for name, selector in (("labels", labels), ("fields", fields)):
        # Of a dict, which other clients take, only the keys would be sent: that
        # selects more than was meant.
        if not isinstance(selector, str | None):
            raise ConfigError(name, 'a selector as text, as "app=web,tier!=db"')
    return Collection(path, labels, fields, Decoding(decoder))
