"""HTTP on the server's side: one request in, one answer or a watch out."""

from __future__ import annotations

import json
import select
import socket
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qsl, urlsplit

from kubetls.testing.selecting import BadSelector, selector
from kubetls.testing.store import Place, Refused

if TYPE_CHECKING:
    import threading

    from kubetls.testing.faults import Fault, Faults
    from kubetls.testing.resources import Kind, Resources
    from kubetls.testing.selecting import Selects
    from kubetls.testing.store import Store

PIECES: Final = 20
"""Parts of a slow body."""

WINDOW_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived.

    Attributes:
        method: HTTP method.
        path: Without the query.
        query: Query parameters; the last of several counts.
        headers: Field names in lower case; without Authorization, which is a secret.
        body: The body's JSON, None without one.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class Owner(Protocol):
    """What the server is to the connections it serves."""

    requests: list[Request]
    resources: Resources
    faults: Faults
    store: Store
    connections: set[Handler]
    streams: set[Handler]
    changed: threading.Condition

    def admits(self, authorization: str | None) -> bool:
        """Tell whether a request has the current token."""

    def begin_watch(
        self, place: Place, selects: Selects, since: int
    ) -> tuple[list[tuple[str, dict[str, Any]]], int]:
        """Return the first events of a watch and the version it goes on from."""

    def execute(
        self, request: Request, place: Place, kind: Kind
    ) -> tuple[int, dict[str, Any]]:
        """Carry out a request that is no watch."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    owner: Owner
    _ended = False
    _left: int | None = None  # octets of a watch until it is cut

    def setup(self) -> None:
        """Be known, so that the server can cut the connection."""
        super().setup()
        self.owner.connections.add(self)

    def finish(self) -> None:
        """Be forgotten."""
        self.owner.connections.discard(self)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - theirs
        """Print nothing."""

    def _respond(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        request = Request(
            self.command,
            url.path,
            dict(parse_qsl(url.query)),
            {
                name.lower(): value
                for name, value in self.headers.items()
                if name.lower() != "authorization"
            },
            json.loads(content) if content else None,
        )
        self.owner.requests.append(request)
        fault = self.owner.faults.take(request.method, request.path)
        if fault.stall:
            time.sleep(fault.stall)
        try:
            self._serve(request, fault)
        except Refused as refused:
            self._refuse(refused, fault)
        except BadSelector as error:
            self._refuse(Refused(400, "BadRequest", str(error)), fault)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _respond  # noqa: N815 - theirs

    def _serve(self, request: Request, fault: Fault) -> None:
        if fault.status:
            words = self.responses.get(fault.status, ("Unknown",))[0].replace(" ", "")
            raise Refused(fault.status, fault.reason or words, "on demand")
        if not self.owner.admits(self.headers.get("Authorization")):
            raise Refused(401, "Unauthorized", "Unauthorized")
        if request.path == "/version":
            self._answer(
                200, {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}, fault
            )
            return
        place, kind, api_version = self.owner.resources.place(request.path)
        if place is None or kind is None:
            self._answer(200, self.owner.resources.discovery(api_version), fault)
        elif request.method == "GET" and request.query.get("watch") in {"1", "true"}:
            self._watch(place, kind, request.query, fault)
        else:
            code, found = self.owner.execute(request, place, kind)
            self._answer(code, found, fault)

    def _refuse(self, refused: Refused, fault: Fault) -> None:
        self._answer(refused.code, status(refused), fault)

    def _answer(self, code: int, value: dict[str, Any], fault: Fault) -> None:
        body = json.dumps(value).encode()
        self._head(code, fault, ("Content-Length", str(len(body))))
        cut = body if fault.cut_after is None else body[: fault.cut_after]
        pieces = PIECES if fault.slow else 1
        size = max(1, -(-len(cut) // pieces))
        for start in range(0, len(cut), size):
            self.wfile.write(cut[start : start + size])
            time.sleep(fault.slow / pieces)
        if fault.cut_after is not None:
            self.cut()

    def _head(self, code: int, fault: Fault, framing: tuple[str, str]) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Audit-Id", "00000000-0000-0000-0000-000000000000")
        self.send_header(*framing)
        if fault.retry_after is not None:
            self.send_header("Retry-After", f"{fault.retry_after:g}")
        if fault.warning is not None:
            self.send_header("Warning", f'299 - "{fault.warning}"')
        self.end_headers()

    # ------------------------------------------------------------------ watches

    def _watch(
        self, place: Place, kind: Kind, query: dict[str, str], fault: Fault
    ) -> None:
        selects = selector(
            query.get("labelSelector", ""), query.get("fieldSelector", "")
        )
        seconds = float(query.get("timeoutSeconds") or WINDOW_SECONDS)
        ends = time.monotonic() + seconds
        since = query.get("resourceVersion") or "0"
        if not since.isdigit():
            raise Refused(400, "BadRequest", f"no resource version: {since}")
        with self.owner.changed:
            first, after = self.owner.begin_watch(place, selects, int(since))
        self._ended = False
        self._left = fault.cut_after
        self.owner.streams.add(self)
        try:
            self._head(200, fault, ("Transfer-Encoding", "chunked"))
            self._events(kind, first)
            if query.get("sendInitialEvents") == "true":
                end = {"k8s.io/initial-events-end": "true"}
                metadata = {"resourceVersion": str(after), "annotations": end}
                self._events(kind, [("BOOKMARK", {"metadata": metadata})])
            while (left := ends - time.monotonic()) > 0 and not self._over():
                with self.owner.changed:
                    events, after = self.owner.store.changes(place, selects, after)
                    if not events and not self._over():
                        self.owner.changed.wait(min(left, 1.0))
                        continue
                self._events(kind, events)
            if query.get("allowWatchBookmarks") == "true":
                bookmark = {"metadata": {"resourceVersion": str(after)}}
                self._events(kind, [("BOOKMARK", bookmark)])
        except Refused as refused:
            self._chunk(json.dumps({"type": "ERROR", "object": status(refused)}))
        finally:
            self.owner.streams.discard(self)
        self.wfile.write(b"0\r\n\r\n")

    def end_watch(self) -> None:
        """End the watch as after its window."""
        self._ended = True

    def _over(self) -> bool:
        """Tell whether nobody reads on; who watches says nothing until it goes."""
        if self._ended:
            return True
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(0))

    def _events(self, kind: Kind, events: list[tuple[str, dict[str, Any]]]) -> None:
        for name, item in events:
            self._chunk(json.dumps({"type": name, "object": named(kind, item)}))

    def _chunk(self, line: str) -> None:
        data = line.encode() + b"\n"
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        if self._left is not None and len(chunk) > self._left:
            self.wfile.write(chunk[: self._left])
            self.cut()
            raise ConnectionAbortedError
        if self._left is not None:
            self._left -= len(chunk)
        self.wfile.write(chunk)

    def cut(self) -> None:
        """End the connection without an end of the body, as a network fault does."""
        self._ended = self.close_connection = True
        socket.socket.shutdown(self.connection, socket.SHUT_RDWR)


def named(kind: Kind, item: dict[str, Any]) -> dict[str, Any]:
    """Return an object with its apiVersion and kind."""
    return {"apiVersion": kind.api_version, "kind": kind.kind, **item}


def status(refused: Refused) -> dict[str, Any]:
    """Return the Status of a refusal."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": refused.reason,
        "code": refused.code,
        "message": refused.message,
    }
