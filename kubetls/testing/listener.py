"""TLS on the server's side: each connection in a thread that is known until its end."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import ssl

END_SECONDS: Final = 5.0
"""How long `await_end()` waits for a connection that was cut to be through with it."""


class Listener(ThreadingHTTPServer):
    """Accepts connections and serves each with a handler.

    Attributes:
        context: For connections that begin now.
    """

    daemon_threads = True
    block_on_close = False
    context: ssl.SSLContext

    def __init__(self, *args: Any) -> None:
        self._serving: dict[threading.Thread, socket.socket] = {}
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, which is known until its end."""
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="kubetls-testing",
            daemon=True,
        )
        self._serving[thread] = request
        thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve it; in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._serving[threading.current_thread()]

    def await_end(self) -> None:
        """Wait for the threads of connections that were cut."""
        for thread, request in list(self._serving.items()):
            with suppress(OSError):
                # One that still shakes hands, below its TLS.
                socket.socket.shutdown(request, socket.SHUT_RDWR)
            thread.join(END_SECONDS)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread; a refused client is no error."""
        with suppress(OSError):
            request.settimeout(30)
            with self.context.wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            ) as tls:
                self._serving[threading.current_thread()] = tls
                tls.do_handshake()
                super().finish_request(tls, client_address)
