"""A thousand idle links: what they cost the parent, threads and memory."""

from __future__ import annotations

import resource
import socket
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame
from flame_backend.backends.base import RunnerInfo
from flame_backend.wire.frames import HEADER, Kind, Limits
from flame_backend.wire.link import Link

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flame_backend.backends.base import PoolSpec, Sink

RUNNERS = 1000
LIMITS = Limits(1024)


class Crowd:
    """A backend of runners that are one end of a socket pair each."""

    def __init__(self) -> None:
        self.ends: dict[str, socket.socket] = {}

    def open(self, spec: PoolSpec, sink: Sink) -> None:
        self.sink = sink

    def boot(self, runner: str) -> None:
        ours, theirs = socket.socketpair()
        self.ends[runner] = theirs
        self.sink.ready(RunnerInfo(runner=runner))
        self.sink.slot_opened(runner, 0, Link(ours, LIMITS))

    def open_slot(self, runner: str, slot: int) -> None: ...
    def kill_slot(self, runner: str, slot: int) -> None: ...
    def end(self, runner: str, grace: float = 0.0) -> None: ...
    def after_fork(self) -> None: ...

    def log_tail(self, runner: str, call: int) -> str:
        return ""

    def close(self, grace: float) -> None:
        for end in self.ends.values():
            end.close()

    def describe(self) -> dict[str, Any]:
        return {"kind": "crowd"}


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Have enough of them, or skip."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(2 * RUNNERS + 200, soft)
    if most != resource.RLIM_INFINITY and most < wanted:
        pytest.skip(f"needs {wanted} descriptors, this system allows {most}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


@pytest.mark.usefixtures("descriptors")
def test_thousand_idle_runners_have_no_thread_and_little_memory() -> None:
    """At most 40 KiB each, of which Python objects are a small part; no thread each."""
    threads = threading.active_count()
    backend = Crowd()
    with flame.Pool("crowd", max=RUNNERS, min=RUNNERS, backend=backend) as pool:
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        pool.wait_ready(60)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert RUNNERS == len(pool.status().runners)
        assert threading.active_count() <= threads + 2
        assert after - before < RUNNERS * 8 * 1024


def test_link_that_has_carried_a_large_frame_is_small_again() -> None:
    """Its buffer is lent, not kept."""
    ours, theirs = socket.socketpair()
    with ours:
        link = Link(theirs, Limits(1024 * 1024))
        body = bytes(100_000)
        thread = threading.Thread(
            target=ours.sendall,
            args=[HEADER.pack(Kind.RESULT, 0, 0, len(body), 1) + body],
        )
        thread.start()
        assert link.receive_small(Kind.RESULT) is None
        assert body == link.receive().body
        thread.join()
        link.release()
        assert link._buffer == b""
        link.close()
