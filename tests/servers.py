"""Real TLS servers on loopback: scripted, hostile, counting what they receive."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.pki import Pair


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return an HTTP response with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answer(value: Any, *headers: str, status: str = "200 OK") -> bytes:
    """Return an HTTP response with a JSON body."""
    body = json.dumps(value).encode()
    return response(body, "Content-Type: application/json", *headers, status=status)


def refusal(code: int, reason: str = "", *headers: str, **more: Any) -> bytes:
    """Return an HTTP response with a Status of the API."""
    status = {"kind": "Status", "code": code, "reason": reason, "message": "no", **more}
    return answer(status, *headers, status=f"{code} {reason or 'Refused'}")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body; of nothing: the end."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def chunked(*parts: bytes, end: bool = True) -> bytes:
    """Return a response in chunks; without the last one it is a cut."""
    return CHUNKED + b"".join(map(chunk, parts)) + (chunk(b"") if end else b"")


VERSION = answer({"gitVersion": "v0.0.0"})


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = bytes | Callable[[ssl.SSLSocket, Request], None]
"""Bytes to send, or a function that talks by itself; then the connection ends."""


@dataclass
class Server:
    """Accepts connections, answers each request with the next of its answers.

    The last answer is repeated. An answer without Content-Length that is not in
    complete chunks, or with the field X-Cut, ends the connection.

    Attributes:
        raw: Talks on the bare connection in place of TLS while it returns True.
        received: Application bytes of all connections.
        requests: The same, read as requests.
        connections: TCP connections accepted.
        handshakes: Handshakes that succeeded from the server's point of view.
        names: Server names that clients indicated; None for none.
    """

    pair: Pair
    folder: Path
    answers: list[Answer] = field(default_factory=lambda: [VERSION])
    configure: Callable[[ssl.SSLContext], None] | None = None
    host: str = "127.0.0.1"
    raw: Callable[[socket.socket], bool] | None = None
    received: bytearray = field(default_factory=bytearray, repr=False)
    requests: list[Request] = field(default_factory=list, repr=False)
    connections: int = 0
    handshakes: int = 0
    names: list[str | None] = field(default_factory=list)

    def __enter__(self) -> Self:
        path = self.folder / "server.pem"
        path.write_bytes(self.pair.certificate + self.pair.key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(path)
        self.context.sni_callback = lambda _, name, __: self.names.append(name)
        if self.configure is not None:
            self.configure(self.context)
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._lock = threading.Lock()
        self._socket = socket.create_server((self.host, 0), family=family)
        self.port = self._socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=[raw])
            self._threads.append(thread)
            thread.start()

    def _serve(self, raw: socket.socket) -> None:
        raw.settimeout(5)
        with raw, suppress(OSError):
            if self.raw is not None and self.raw(raw):
                return
            tls = self.context.wrap_socket(raw, server_side=True)
            self.handshakes += 1
            with tls:
                while request := self._read(tls):
                    self.requests.append(request)
                    if not self._answer(tls, request):
                        return

    def _read(self, tls: ssl.SSLSocket) -> Request | None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += (part := self._receive(tls))
            if not part:
                return None
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        headers = {name.title(): value for name, _, value in pairs}
        while len(body) < int(headers.get("Content-Length", 0)):
            body += (part := self._receive(tls))
            if not part:
                return None
        method, target, _ = (*first.split(" "), "", "", "")[:3]
        return Request(method, target, headers, body)

    def _receive(self, tls: ssl.SSLSocket) -> bytes:
        part = tls.recv(65536)
        self.received += part
        return part

    def _answer(self, tls: ssl.SSLSocket, request: Request) -> bool:
        """Answer; tell whether the connection goes on."""
        with self._lock:
            many = len(self.answers) > 1
            found = self.answers.pop(0) if many else self.answers[0]
        if callable(found):
            found(tls, request)
        else:
            tls.sendall(found)
            head = found.partition(b"\r\n\r\n")[0]
            whole = b"Content-Length" in head or found.endswith(b"\r\n0\r\n\r\n")
            if whole and b"X-Cut" not in head:
                return True
        # FIN, and no close_notify: what a network fault looks like.
        tls.shutdown(socket.SHUT_RDWR)
        return False

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join()
