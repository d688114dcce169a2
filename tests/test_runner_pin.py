"""Who a runner obeys: the holder of the certificate in FLAME_PARENT, and nobody else.

A pod's address is given to others when the pod is gone, and whoever gets it can listen.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flame_backend.backends.kubernetes.pin import listener_identity
from flame_backend.errors import LinkUnauthenticated
from flame_backend.runner import agent
from flame_backend.runner.dial import dial
from flame_backend.runner.parent import VARIABLE, Parent

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
TOKEN = "token-of-the-runner"


class Stranger:
    """Listens where a parent was, and notes what it gets after the handshake."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.received = b""
        self.context = context
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            try:
                with self.context.wrap_socket(raw, server_side=True) as tls:
                    tls.settimeout(5)
                    self.received += tls.recv(65536)
            except OSError:
                raw.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@contextmanager
def stranger(context: ssl.SSLContext) -> Iterator[Stranger]:
    found = Stranger(context)
    try:
        yield found
    finally:
        found.close()


def parent(port: int, certificate: str, **more: str) -> Parent:
    """Return the facts that a runner is started with."""
    return Parent(
        "test",
        "runner-1",
        "tls",
        addresses=(HOST,),
        port=port,
        certificate=certificate,
        failsafe=5.0,
        **more,
    )


def test_holder_of_the_certificate_is_the_parent() -> None:
    """The control: the same dial, and the link is there."""
    certificate, context = listener_identity((HOST,))
    with stranger(context) as server, dial(parent(server.port, certificate)) as tls:
        assert "TLSv1.3" == tls.version()


def test_whoever_has_another_certificate_is_no_parent() -> None:
    """For the same address, by the same maker, of another process: not one byte."""
    certificate, _ = listener_identity((HOST,))
    _, context = listener_identity((HOST,))
    with (
        stranger(context) as server,
        pytest.raises(LinkUnauthenticated, match="not the parent"),
    ):
        dial(parent(server.port, certificate))
    assert b"" == server.received


def test_runner_shows_its_token_to_the_parent_only(tmp_path: Path) -> None:
    """The real program ends instead, and says that it was not its parent."""
    (tmp_path / "token").write_text(TOKEN)
    certificate, own = listener_identity((HOST,))
    _, others = listener_identity((HOST,))

    def told(context: ssl.SSLContext) -> tuple[int, str, bytes]:
        with stranger(context) as server:
            facts = parent(server.port, certificate, token_path=str(tmp_path / "token"))
            done = subprocess.run(
                [sys.executable, "-P", "-m", "flame_backend.runner"],
                env=os.environ | {VARIABLE: facts.encoded(), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        return done.returncode, done.stderr, server.received

    code, text, received = told(own)
    assert TOKEN.encode() in received, (code, text)
    code, text, received = told(others)
    assert (agent.EXIT_REFUSED, b"") == (code, received)
    assert "is not the parent" in text
