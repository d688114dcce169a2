"""The example app: a web server that counts lines of Python's modules on runners.

GET /lines?module=json answers with a number that a runner has counted. On a laptop
(`python deploy/app.py`) the runner is a process, in a cluster a pod.
"""

# ruff: noqa: INP001 - a program of its own, in no package
from __future__ import annotations

import importlib.util
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import flame_backend as flame

PORT = 8080


def lines(module: str) -> int:
    """Count the lines of a module's source; runs on a runner."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ValueError(f"no source of {module!r}")
    return Path(spec.origin).read_bytes().count(b"\n")


class Handler(BaseHTTPRequestHandler):
    """Answers one request; the pool is its server's."""

    def do_GET(self) -> None:
        """Answer."""
        url = urlsplit(self.path)
        if url.path == "/healthz":
            self._answer(200, "ok")
            return
        module = parse_qs(url.query).get("module", ["json"])[0]
        try:
            self._answer(200, str(self.server.pool.call(lines, module)))
        except (ValueError, flame.RemoteError) as error:
            self._answer(400, str(error).splitlines()[0])
        except flame.FlameError as error:
            self._answer(503, str(error).splitlines()[0])

    def _answer(self, status: int, text: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """A web server with a pool."""

    def __init__(self, address: tuple[str, int], pool: flame.Pool) -> None:
        super().__init__(address, Handler)
        self.pool = pool


def backend() -> flame.KubernetesBackend | None:
    """In a pod, take the account and port that deploy/ names; else processes."""
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    return flame.KubernetesBackend(service_account="words-runner", port=7433)


def main(port: int = PORT) -> None:
    """Serve until SIGTERM; calls that run may finish."""
    with (
        flame.Pool("words", max=4, backend=backend()) as pool,
        Server(("", port), pool) as server,
    ):
        for number in (signal.SIGTERM, signal.SIGINT):
            # In a thread: shutdown() waits for the loop that this handler interrupts.
            signal.signal(
                number,
                lambda *_: threading.Thread(target=server.shutdown).start(),
            )
        server.serve_forever()


if __name__ == "__main__":
    main()
