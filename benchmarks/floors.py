"""The least that could do the same: bare loops, a bare start, a bare fork."""

from __future__ import annotations

import os
import pickle
import socket
import ssl
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from work import nothing

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH = struct.Struct("!I")

START = """
import socket, ssl, sys
with socket.create_connection(('127.0.0.1', int(sys.argv[1]))) as s:
    s.sendall(b'x')
"""


def receive(sock: socket.socket) -> Any:
    """Read one framed pickle."""
    size = LENGTH.unpack(sock.recv(4, socket.MSG_WAITALL))[0]
    return pickle.loads(sock.recv(size, socket.MSG_WAITALL))


def receive_record(sock: socket.socket) -> Any:
    """Read one framed pickle that came in one TLS record."""
    size = LENGTH.unpack(sock.recv(4))[0]
    return pickle.loads(sock.recv(size))


def send(sock: socket.socket, value: object) -> None:
    """Write one framed pickle."""
    data = pickle.dumps(value)
    sock.sendall(LENGTH.pack(len(data)) + data)


def _serve(sock: socket.socket, take: Callable[[socket.socket], Any]) -> None:
    while True:
        function, arguments = take(sock)
        send(sock, function(*arguments))


def _forked(run: Callable[[], None]) -> int:
    """Run something in a child; return its pid."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    return child


def socketpair_loop() -> tuple[Callable[[], object], int]:
    """Return one round trip over a socketpair, and the pid of its other end."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        ours.close()
        _serve(theirs, receive)

    child = _forked(run)
    theirs.close()
    return _round_trip(ours, receive), child


def _round_trip(
    sock: socket.socket, take: Callable[[socket.socket], Any]
) -> Callable[[], object]:
    def call() -> object:
        send(sock, (nothing, ()))
        return take(sock)

    return call


def tls_loop(
    certificate: str, context: ssl.SSLContext
) -> tuple[Callable[[], object], int]:
    """Return one round trip over TLS 1.3 on loopback, both ends blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def run() -> None:
            client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client.load_verify_locations(cadata=certificate)
            raw = socket.create_connection(("127.0.0.1", port))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = client.wrap_socket(raw, server_hostname="127.0.0.1")
            _serve(tls, receive_record)

        child = _forked(run)
        raw, _ = listener.accept()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = context.wrap_socket(raw, server_side=True)
    return _round_trip(sock, receive_record), child


def start() -> float:
    """Return the seconds of a bare Python that loads ssl and socket and calls back."""
    began = time.perf_counter()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with subprocess.Popen([sys.executable, "-c", START, port]):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
            return time.perf_counter() - began


class Zygote:
    """A bare zygote: for each connection a fork that serves one call."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()

        def run() -> None:
            self._ours.close()
            # As much as a runner's zygote has loaded: a fork copies its tables.
            import flame_backend.runner.slot
            import flame_backend.wire.exceptions  # noqa: F401

            while True:
                data, (descriptor,), _, _ = socket.recv_fds(theirs, 1, 1)
                if not data:
                    return
                sock = socket.socket(fileno=descriptor)
                if os.fork() == 0:
                    function, arguments = receive(sock)
                    send(sock, function(*arguments))
                    os._exit(0)
                sock.close()
                os.waitpid(-1, os.WNOHANG)

        self.pid = _forked(run)
        theirs.close()

    def call(self) -> float:
        """Return the seconds of a fork and its one call."""
        began = time.perf_counter()
        ours, theirs = socket.socketpair()
        socket.send_fds(self._ours, [b"x"], [theirs.fileno()])
        theirs.close()
        with ours:
            send(ours, (nothing, ()))
            receive(ours)
        return time.perf_counter() - began


class Sink:
    """A child that takes large buffers: their length, then memory, then the bytes."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()

        def run() -> None:
            self._ours.close()
            while head := theirs.recv(LENGTH.size, socket.MSG_WAITALL):
                target = bytearray(LENGTH.unpack(head)[0])
                theirs.recv_into(target, len(target), socket.MSG_WAITALL)
                theirs.sendall(b"x")

        self.pid = _forked(run)
        theirs.close()

    def send(self, data: bytes) -> None:
        """Send one buffer and wait for its receipt."""
        self._ours.sendall(LENGTH.pack(len(data)))
        self._ours.sendall(data)
        self._ours.recv(1)

    def close(self) -> None:
        """End the child."""
        self._ours.close()
        os.waitpid(self.pid, 0)
