"""Real TLS servers on loopback that count the application bytes they receive."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cluster.pki import Pair


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return an HTTP response with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


VERSION = response(b'{"gitVersion":"v0.0.0"}', "Content-Type: application/json")


@dataclass
class Server:
    """Accepts connections, answers each request with the next scripted bytes.

    Attributes:
        received: Application bytes of all connections.
        handshakes: Handshakes that succeeded from the server's point of view.
        names: Server names that clients indicated; None for none.
    """

    pair: Pair
    folder: Path
    answers: list[bytes] = field(default_factory=lambda: [VERSION])
    configure: Callable[[ssl.SSLContext], None] | None = None
    host: str = "127.0.0.1"
    received: bytearray = field(default_factory=bytearray, repr=False)
    handshakes: int = 0
    names: list[str | None] = field(default_factory=list)

    def __enter__(self) -> Self:
        path = self.folder / "server.pem"
        path.write_bytes(self.pair.certificate + self.pair.key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(path)
        self._context.sni_callback = lambda _, name, __: self.names.append(name)
        if self.configure is not None:
            self.configure(self._context)
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
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
            thread = threading.Thread(target=self._serve, args=[raw])
            self._threads.append(thread)
            thread.start()

    def _serve(self, raw: socket.socket) -> None:
        raw.settimeout(5)
        with raw, suppress(OSError):
            tls = self._context.wrap_socket(raw, server_side=True)
            self.handshakes += 1
            with tls:
                while data := tls.recv(65536):
                    self.received += data
                    if b"\r\n\r\n" in data:
                        self._answer(tls)

    def _answer(self, tls: ssl.SSLSocket) -> None:
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        tls.sendall(answer)
        if b"Content-Length" not in answer or b"X-Cut" in answer:
            tls.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join()
