"""The scripted API server: real TLS on loopback, and faults on demand."""

from __future__ import annotations

import copy
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from kubetls.credentials.config import Config
from kubetls.credentials.endpoint import Endpoint
from kubetls.identity.names import reference_identifier
from kubetls.testing.credentials import ADDRESS, TOKEN_SECONDS, Credentials
from kubetls.testing.faults import Fault, Faults
from kubetls.testing.handler import Handler, Request, named
from kubetls.testing.listener import Listener
from kubetls.testing.resources import Kind, Resources
from kubetls.testing.selecting import selector
from kubetls.testing.store import Place, Refused, Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kubetls.testing.selecting import Selects


class Server:
    """A scripted API server; made by `server()`, used as a context manager.

    Attributes:
        requests: What arrived, in order, without credentials.
    """

    def __init__(self, objects: Iterable[Mapping[str, Any]] = ()) -> None:
        self.requests: list[Request] = []
        self.store = Store()
        self.resources = Resources()
        self.faults = Faults()
        self.connections: set[Handler] = set()
        self.streams: set[Handler] = set()
        self.changed = threading.Condition()
        self._credentials = Credentials()
        self._listener = self._listen(0)
        self._port = self._listener.server_port
        for item in objects:
            self.put(item)

    @property
    def config(self) -> Config:
        """A configuration for `kubetls.session`; follows what is rotated here."""
        endpoint = Endpoint(reference_identifier(ADDRESS), self._port)
        return Config(endpoint, self._credentials, "default", "kubetls.testing")

    @property
    def watches(self) -> int:
        """How many watches are open."""
        return len(self.streams)

    # ------------------------------------------------------------------ objects

    def define(
        self, api_version: str, kind: str, plural: str, *, namespaced: bool = True
    ) -> None:
        """Serve a custom resource."""
        self.resources.define(Kind(api_version, kind, plural, namespaced))

    def put(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object, or replace it, as another client would.

        Args:
            item: Has apiVersion, kind and metadata.name; a namespaced one without
                namespace goes to "default".
        """
        wanted = dict(item)
        kind = self.resources.of_object(wanted)
        place = self._place(kind, wanted)
        with self.changed:
            try:
                self.store.get(place)
                stored = self.store.replace(place, wanted)
            except Refused:
                stored = self.store.create(place, wanted)
            self.changed.notify_all()
            return named(kind, stored)

    def delete(self, item: Mapping[str, Any]) -> None:
        """Delete an object, as another client would."""
        kind = self.resources.of_object(dict(item))
        with self.changed:
            self.store.delete(self._place(kind, item), {})
            self.changed.notify_all()

    def objects(self, api_version: str, kind: str) -> list[dict[str, Any]]:
        """Return all objects of a kind, as they are stored."""
        found = self.resources.of_object({"apiVersion": api_version, "kind": kind})
        everything = selector("", "")
        with self.changed:
            stored = self.store.existing(Place(api_version, found.plural), everything)
            return [named(found, item) for item in stored]

    @staticmethod
    def _place(kind: Kind, item: Mapping[str, Any]) -> Place:
        metadata = item["metadata"]
        namespace = metadata.get("namespace", "default") if kind.namespaced else None
        return Place(kind.api_version, kind.plural, namespace, metadata["name"])

    # ------------------------------------------------------------------ faults

    def fail_next(
        self,
        status: int,
        *,
        times: int = 1,
        retry_after: float | None = None,
        reason: str = "",
        method: str | None = None,
        path: str = "",
    ) -> None:
        """Refuse the next requests with a status.

        Args:
            status: HTTP status, 400 or more.
            times: How many requests.
            retry_after: Seconds in Retry-After; None for no such header.
            reason: Status.reason; "" for what the status stands for.
            method: Only requests with this method.
            path: Only requests whose path begins so.
        """
        fault = Fault(status, reason, retry_after, method=method, path=path)
        self.faults.add(fault, times)

    def warn_next(
        self, text: str, *, method: str | None = None, path: str = ""
    ) -> None:
        """Put an API warning into the next answer."""
        self.faults.add(Fault(warning=text, method=method, path=path))

    def stall_next(
        self, seconds: float, *, method: str | None = None, path: str = ""
    ) -> None:
        """Begin the next answer late."""
        self.faults.add(Fault(stall=seconds, method=method, path=path))

    def slow_next(
        self, seconds: float, *, method: str | None = None, path: str = ""
    ) -> None:
        """Spread the next answer's body over some seconds."""
        self.faults.add(Fault(slow=seconds, method=method, path=path))

    def cut_next(
        self, after: int = 0, *, method: str | None = None, path: str = ""
    ) -> None:
        """Cut the next answer after that many bytes of its body."""
        self.faults.add(Fault(cut_after=after, method=method, path=path))

    def cut(self) -> None:
        """Cut all open watches, as a network fault does."""
        _cut(self.streams)
        with self.changed:
            self.changed.notify_all()

    def end_watches(self) -> None:
        """End all open watches properly, as the API server does after their window."""
        with self.changed:
            for stream in self.streams:
                stream.end_watch()
            self.changed.notify_all()

    def expire(self) -> None:
        """Make all resource versions and continue tokens too old (410).

        Open watches are told so by an ERROR event.
        """
        with self.changed:
            self.store.forget()
            self.changed.notify_all()

    def stop(self) -> None:
        """Go away: connections are cut, new ones refused. `start()` comes back."""
        self._listener.shutdown()
        self._listener.server_close()
        _cut(self.connections)
        with self.changed:
            self.changed.notify_all()
        self._listener.await_end()

    def start(self) -> None:
        """Come back after `stop()`, on the same port, with the same objects."""
        self._listener = self._listen(self._port)

    # ------------------------------------------------------------------ rotation

    def rotate_token(
        self, *, publish: bool = True, seconds: float = TOKEN_SECONDS
    ) -> None:
        """Accept a new token only.

        Args:
            publish: Let `config` see it.
            seconds: Its life, by its own word.
        """
        self._credentials.replace_token(seconds)
        if publish:
            self.publish()

    def rotate_certificate(
        self, *, authority: bool = False, publish: bool = True
    ) -> None:
        """Present a new certificate to new connections.

        Args:
            authority: Issued by a new CA.
            publish: Let `config` see the new CA, in place of the old one.
        """
        self._credentials.replace_certificate(authority=authority)
        self._listener.context = self._credentials.context
        if publish:
            self.publish()

    def publish(self) -> None:
        """Let `config` see the token and the CA of now."""
        self._credentials.publish()

    # ------------------------------------------------------------------ serving

    def _listen(self, port: int) -> Listener:
        handler = type("BoundHandler", (Handler,), {"owner": self})
        listener = Listener((ADDRESS, port), handler)
        listener.context = self._credentials.context
        threading.Thread(
            target=listener.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="kubetls-testing",
            daemon=True,
        ).start()
        return listener

    def admits(self, authorization: str | None) -> bool:
        """Tell whether a request has the current token."""
        return self._credentials.admits(authorization)

    def begin_watch(
        self, place: Place, selects: Selects, since: int
    ) -> tuple[list[tuple[str, dict[str, Any]]], int]:
        """Return the first events of a watch and the version it goes on from."""
        if since == 0:
            existing = self.store.existing(place, selects)
            return [("ADDED", item) for item in existing], self.store.version
        return self.store.changes(place, selects, since)

    def execute(
        self, request: Request, place: Place, kind: Kind
    ) -> tuple[int, dict[str, Any]]:
        """Carry out a request that is no watch."""
        with self.changed:
            answer = self._execute(request, place, kind)
            self.changed.notify_all()
            return answer

    def _execute(  # noqa: PLR0911 - one for each verb
        self, request: Request, place: Place, kind: Kind
    ) -> tuple[int, dict[str, Any]]:
        store, query, body = self.store, request.query, request.body
        writes = request.method in {"POST", "PUT", "PATCH"}
        if writes and not isinstance(body, dict):
            words = "bodies that are no objects (JSON patches) are not supported here"
            raise Refused(415, "UnsupportedMediaType", words)
        if query.get("dryRun") or (isinstance(body, dict) and body.get("dryRun")):
            store = copy.deepcopy(store)  # carried out there, and forgotten
        match request.method, place.name:
            case "GET", None:
                selects = selector(
                    query.get("labelSelector", ""), query.get("fieldSelector", "")
                )
                limit = int(query.get("limit") or 0)
                page = store.page(place, selects, limit, query.get("continue", ""))
                return 200, named(kind, page) | {"kind": f"{kind.kind}List"}
            case "GET", _:
                return 200, named(kind, store.get(place))
            case "POST", None:
                return 201, named(kind, store.create(place, body))
            case "PUT", str():
                return 200, named(kind, store.replace(place, body))
            case "PATCH", str(name):
                applies = "apply-patch" in request.headers.get("content-type", "")
                if applies and not store.existing(place, selector("", "")):
                    collection = Place(place.api_version, place.plural, place.namespace)
                    body.setdefault("metadata", {})["name"] = name
                    return 201, named(kind, store.create(collection, body))
                return 200, named(kind, store.patch(place, body))
            case "DELETE", str():
                conditions = (body or {}).get("preconditions") or {}
                return 200, named(kind, store.delete(place, conditions))
            case _:
                raise Refused(405, "MethodNotAllowed", "not supported here")

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def server(objects: Iterable[Mapping[str, Any]] = ()) -> Server:
    """Start a scripted API server on loopback.

    Args:
        objects: What it holds at first; each has apiVersion, kind and metadata.name.

    Returns:
        The server, listening; `stop()` or the end of a `with` block ends it.
    """
    return Server(objects)


def _cut(connections: set[Handler]) -> None:
    for connection in list(connections):
        with suppress(OSError):
            connection.cut()
