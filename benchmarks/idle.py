"""What an idle pool costs its parent: wake-ups and memory."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import time
from pathlib import Path

import flame_backend as flame
from flame_backend.backends.kubernetes.pin import listener_identity
from flame_backend.wire.frames import Limits
from flame_backend.wire.link import Link


def switches() -> int:
    """Return how often the threads of this process have gone to sleep so far."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        text = (task / "status").read_text(encoding="ascii")
        count += int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return count


def wakeups(runners: int, seconds: float) -> tuple[float, int]:
    """Return the wake-ups of an idle pool's parent beyond heartbeats, and those.

    One agent serves all local runners. Every 5 s it and the parent send each other a
    PING, which wakes the hub's thread for its timer and for what it reads.
    """
    with flame.Pool(
        "idle", max=runners, min=runners, backend=flame.LocalBackend()
    ) as pool:
        pool.wait_ready(60)
        time.sleep(3)
        before = switches()
        time.sleep(seconds)
        # Its own sleep was one.
        count = switches() - before - 1
    beats = 2 * (int(seconds / 5.0) + 1)
    return max(0.0, count - beats), beats


def link_kib(count: int) -> float:
    """Return the resident KiB that one idle link over TLS takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    certificate, context = listener_identity(("127.0.0.1",))
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        child = os.fork()
        if child == 0:
            _dial(certificate, listener.getsockname()[1], count)
        links = [_accepted(listener, context)]
        before = _resident_kib()
        links += [_accepted(listener, context) for _ in range(count)]
        taken = _resident_kib() - before
    os.kill(child, 9)
    os.waitpid(child, 0)
    for link in links:
        link.close()
    return taken / count


def _accepted(listener: socket.socket, context: ssl.SSLContext) -> Link:
    raw, _ = listener.accept()
    sock = context.wrap_socket(raw, server_side=True)
    link = Link(sock, Limits(16 * 1024 * 1024))
    sock.read(1)
    return link


def _dial(certificate: str, port: int, count: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificate)
    kept = []
    for _ in range(count + 1):
        raw = socket.create_connection(("127.0.0.1", port))
        tls = context.wrap_socket(raw, server_hostname="127.0.0.1")
        tls.write(b"x")
        kept.append(tls)
    time.sleep(60)
    os._exit(0)


def _resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() // 1024
