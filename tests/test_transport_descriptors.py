"""Sockets that no request has any more: each is closed, at once and by us.

What is only dropped stays open until the collector finds it, and says so with a
ResourceWarning, which is an error here.
"""

from __future__ import annotations

import gc
import queue
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from kubetls import testing
from kubetls.client import list_watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubetls.transport.pool import GuardedPool


class Ended(Exception):
    """What a caller raises who does not want the connection any more."""


@pytest.fixture
def session() -> Iterator[kubetls.Session]:
    """Lend a session that holds one idle connection."""
    with testing.server() as server, kubetls.session(server.config) as session:
        session.get("/version")
        yield session


@pytest.fixture
def pool(session: kubetls.Session) -> GuardedPool:
    """Lend its pool."""
    found = session._exchange._pool
    assert found is not None
    return found


def sockets() -> int:
    """Count this process' sockets towards servers and from clients."""
    gc.collect()
    names = Path("/proc/self/fd").glob("*")
    return sum(
        str(name.resolve()).rpartition("/")[2][:7] == "socket:" for name in names
    )


def idle(pool: GuardedPool) -> list[Any]:
    assert pool.pool is not None
    return [found.sock for found in pool.pool.queue if found and found.sock]


def test_connection_of_a_caller_who_gives_up_is_closed(pool: GuardedPool) -> None:
    """It is out of the pool, and the caller has not got it yet."""
    (sock,) = idle(pool)

    def refuse(_lease: object) -> None:
        raise Ended

    with pytest.raises(Ended):
        pool.exchange(
            "GET",
            "/version",
            body=None,
            headers={},
            connect_timeout=5,
            read_timeout=5,
            leased=refuse,
        )
    assert not idle(pool)
    assert sock.fileno() == -1


def test_connection_that_comes_back_while_the_pool_closes_is_closed(
    session: kubetls.Session, pool: GuardedPool
) -> None:
    """Between the look whether there is a queue and the way into it."""
    (sock,) = idle(pool)
    assert pool.pool is not None
    connection = pool.pool.get()

    class Late(queue.LifoQueue[Any]):
        def put(self, *args: Any, **kwargs: Any) -> None:
            session.close()
            super().put(*args, **kwargs)

    pool.pool = Late(10)
    pool._put_conn(connection)
    assert pool.pool is None
    assert sock.fileno() == -1


def test_handshake_that_ctrl_c_ends_leaves_no_socket() -> None:
    """The base class closes the socket for errors only."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with testing.server() as server, socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = replace(server.config.endpoint, port=silent.getsockname()[1])
        config = replace(server.config, endpoint=endpoint)
        with kubetls.session(config) as session:
            before = sockets()
            old = signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            try:
                with pytest.raises(KeyboardInterrupt) as caught:
                    session.get("/version")
            finally:
                signal.signal(signal.SIGALRM, old)
            # Its traceback is alive, so that the collector has closed nothing.
            assert caught.value
            assert sockets() == before


POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}


@pytest.mark.parametrize("events", [1, 2])
def test_stream_that_is_left_before_its_first_change_is_closed(events: int) -> None:
    """Its watch has begun for what exists, and nobody follows it any more."""
    with testing.server([POD]) as server, kubetls.session(server.config) as session:
        pods = kubetls.path("v1", "pods", namespace="default")
        with session.list_watch(pods, send_initial_events=True) as watch:
            for _ in range(events):
                next(watch)
            sock = watch._watch._lease._connection.sock
        assert sock.fileno() == -1


def test_watch_of_a_server_that_sends_bookmarks_of_its_own_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It knows watches, and not what was asked for; a list takes its place."""
    monkeypatch.setattr(list_watch, "INITIAL_EVENTS_END", "something else")
    with testing.server([POD]) as server, kubetls.session(server.config) as session:
        pods = kubetls.path("v1", "pods", namespace="default")
        with session.list_watch(pods, send_initial_events=True) as watch:
            next(watch)
            gc.collect()
