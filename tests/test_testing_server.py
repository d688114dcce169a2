"""kubetls.testing.server leaves nothing behind: other people's tests run after it."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

import kubetls
from kubetls import testing

MAPS = kubetls.path("v1", "configmaps", namespace="default")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def serving() -> list[threading.Thread]:
    return [found for found in threading.enumerate() if "testing" in found.name]


def watch_until_the_server_goes(server: testing.Server) -> None:
    with kubetls.session(server.config) as session:
        watch = session.watch(MAPS)
        assert watch.next(0.2) is None
        server.stop()
        watch.stop()


def watch_and_leave(server: testing.Server) -> None:
    with kubetls.session(server.config) as session:
        watch = session.watch(MAPS)
        assert watch.next(0.2) is None
        watch.stop()


def shake_hands_for_ever(server: testing.Server) -> None:
    sock = socket.create_connection(("127.0.0.1", server.config.endpoint.port))
    time.sleep(0.1)
    assert serving()
    server.stop()
    sock.close()


def say_nothing(server: testing.Server) -> None:
    context = kubetls.session(server.config).ssl_context()
    raw = socket.create_connection(("127.0.0.1", server.config.endpoint.port))
    with context.wrap_socket(raw, server_hostname="127.0.0.1"):
        time.sleep(0.1)
        server.stop()


@pytest.mark.parametrize(
    "use",
    [watch_until_the_server_goes, watch_and_leave, shake_hands_for_ever, say_nothing],
)
def test_no_thread_and_no_descriptor_is_left(use: object) -> None:
    """When it stops, whatever its clients are doing."""
    assert callable(use)
    before = descriptors()
    with testing.server() as server:
        use(server)
    deadline = time.monotonic() + 5
    # A watch that was stopped closes its own end a moment later.
    while (serving() or descriptors() > before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not serving()
    assert descriptors() == before


def test_watch_that_nobody_reads_ends_by_itself() -> None:
    """The server sees its client go, and does not keep the watch for an hour."""
    with testing.server() as server:
        watch_and_leave(server)
        deadline = time.monotonic() + 5
        while server.watches and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not server.watches


def test_stopped_server_comes_back() -> None:
    """On the same port, with the same objects."""
    once = kubetls.Retries(attempts=1)
    with (
        testing.server() as server,
        kubetls.session(server.config, retries=once) as session,
    ):
        session.get("/version")
        server.stop()
        with pytest.raises(kubetls.ConnectionFailed):
            session.post(MAPS, {})
        server.start()
        assert session.get("/version")


def test_handshake_of_a_stranger_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed into somebody's test output."""
    with testing.server() as server:
        context = ssl.create_default_context()
        address = ("127.0.0.1", server.config.endpoint.port)
        with socket.create_connection(address) as raw, pytest.raises(ssl.SSLError):
            context.wrap_socket(raw, server_hostname="127.0.0.1")
    assert capfd.readouterr() == ("", "")


def test_dry_run_changes_nothing() -> None:
    """Whether it stands in the query, or in the body as for deletions."""
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    with testing.server([item]) as server, kubetls.session(server.config) as session:
        before = server.objects("v1", "ConfigMap")
        other = item | {"metadata": {"name": "b"}}
        assert "b" == session.post(MAPS, other, dry_run=True)["metadata"]["name"]
        session.patch(f"{MAPS}/a", {"data": {"c": "d"}}, dry_run=True)
        session.delete(f"{MAPS}/a", dry_run=True)
        assert before == server.objects("v1", "ConfigMap")


@pytest.mark.parametrize("name", ["a,b", "a=b", "a!=b,c", "a\\b", "sys:tem"])
def test_object_of_any_name_is_waited_for(name: str) -> None:
    """A client writes what ends a selector's term with a backslash before it."""
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    with testing.server([item]) as server, kubetls.session(server.config) as session:
        path = kubetls.path("v1", "configmaps", name, namespace="default")
        found = session.wait(path, lambda seen: seen is not None, 5)
        assert found is not None
        assert name == found["metadata"]["name"]


def test_object_with_finalizers_goes_with_the_last_of_them() -> None:
    """Marked first, and again without effect; a watch sees the mark and the end."""
    metadata = {"name": "a", "finalizers": ["x/one", "x/two"]}
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    place = f"{MAPS}/a"
    with testing.server([item]) as server, kubetls.session(server.config) as session:
        watch = session.list_watch(MAPS)
        assert ["ADDED", "SYNCED"] == types(watch, 2)
        marked = session.delete(place)
        assert "deletionTimestamp" in marked["metadata"]
        assert marked == session.delete(place) == session.get(place)
        session.patch(place, {"metadata": {"finalizers": ["x/two"]}})
        # No writer takes the mark out again, and no change is no event.
        session.patch(place, {"metadata": {"deletionTimestamp": None}})
        session.patch(place, {"metadata": {"finalizers": None}})
        with pytest.raises(kubetls.NotFound):
            session.get(place)
        assert ["MODIFIED", "MODIFIED", "DELETED"] == types(watch, 3)
        watch.stop()


def types(watch: kubetls.ListWatch, count: int) -> list[str]:
    """Return the types of the next events."""
    found = (watch.next(5) for _ in range(count))
    return [event.type for event in found if event is not None]


def test_json_patch_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    """In so many words, and not by a cut and a traceback."""
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    with (
        testing.server([item]) as server,
        kubetls.session(server.config) as session,
        pytest.raises(kubetls.UnsupportedMediaType, match="JSON patches"),
    ):
        session.patch(f"{MAPS}/a", [{"op": "test"}], "json")
    assert ("", "") == capfd.readouterr()
