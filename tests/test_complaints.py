"""What users of other clients complain about, each as a claim about this one.

Issues without a repository are of kubernetes-client/python.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

import kubetls
from kubetls import testing
from kubetls.client import watch as watches
from tests.cluster.pki import Authority
from tests.credential_files import document
from tests.servers import (
    CHUNKED,
    Answer,
    Request,
    Server,
    answer,
    chunked,
    refusal,
    response,
)
from tests.test_hostile_server import GOOD, config_for, open_session

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

PODS = kubetls.path("v1", "pods", namespace="default")
LIST = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "5"}}
EMPTY = answer(LIST | {"items": []})
POD: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}


@pytest.fixture
def fake() -> Iterator[testing.Server]:
    """Lend a server with one pod."""
    with testing.server([POD]) as server:
        yield server


@pytest.fixture
def session(fake: testing.Server) -> Iterator[kubetls.Session]:
    """Lend a session with it."""
    with kubetls.session(fake.config) as opened:
        yield opened


# ------------------------------------------------------------------ connections


def test_keepalive_finds_half_open_connections(session: kubetls.Session) -> None:
    """#2067, #2693: behind NAT a peer goes away without a word; and no Nagle delay."""
    session.get("/version")
    sock = session._exchange._live_pool()._get_conn().sock
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    if sys.platform == "linux":
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        found = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options]
        assert [30, 15, 9] == found
    sock.close()


def test_watches_starve_no_request(fake: testing.Server) -> None:
    """More streams than the pool keeps connections, and requests between them."""
    with kubetls.session(fake.config, pool_size=1) as session:
        streams = [session.list_watch(PODS) for _ in range(5)]
        for stream in streams:
            assert "ADDED" == next(stream).type
            assert "SYNCED" == next(stream).type
            assert session.get(f"{PODS}/a")
        for stream in streams:
            stream.stop()


def test_no_thread_is_started(session: kubetls.Session) -> None:
    """#411, #545, #1037: pools of threads leak, and hang at the end."""
    before = {thread.name for thread in threading.enumerate()}
    list(session.list(PODS))
    with session.list_watch(PODS) as stream:
        next(stream)
        started = {thread.name for thread in threading.enumerate()} - before
    # The server's own threads are in this process, too.
    assert started <= {"kubetls-testing"}


@pytest.mark.parametrize("memory_file", [True, False])
def test_a_client_key_is_left_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, memory_file: bool
) -> None:
    """#765, #1782: temporary files with keys stay, or a cleaner takes them away."""
    if not memory_file:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    client = Authority().serving()
    folder = tmp_path / "kube"
    folder.mkdir()
    (folder / "client.crt").write_bytes(client.certificate)
    (folder / "client.key").write_bytes(client.key)
    user = {"client-certificate": "client.crt", "client-key": "client.key"}
    (folder / "config").write_text(json.dumps(document(user=user | {"token": None})))
    kubetls.session(kubetls.kubeconfig(folder / "config")).close()
    assert [] == list((tmp_path / "scratch").iterdir())


def test_the_certificate_profile_is_the_same_on_every_python(
    fake: testing.Server,
) -> None:
    """#2394: 3.13 began to demand details that clusters' own CAs lack."""
    with kubetls.session(fake.config) as session:
        assert session.get("/version")
    with (
        kubetls.session(fake.config, strict_x509=True) as session,
        pytest.raises(kubetls.ChainRefused),
    ):
        session.get("/version")


# ------------------------------------------------------------------ requests


def test_a_deletion_says_what_is_meant(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """#234: dependents stay; kr8s: a grace of 0 was taken for none."""
    uid = session.get(f"{PODS}/a")["metadata"]["uid"]
    with pytest.raises(kubetls.Conflict):
        session.delete(f"{PODS}/a", uid="another")
    session.delete(f"{PODS}/a", "Foreground", 0, uid)
    options = {"apiVersion": "v1", "kind": "DeleteOptions"}
    wanted = {"propagationPolicy": "Foreground", "gracePeriodSeconds": 0}
    sent = fake.requests[-1].body
    assert options | wanted | {"preconditions": {"uid": uid}} == sent
    with pytest.raises(kubetls.NotFound):
        session.delete(f"{PODS}/a")
    assert options == fake.requests[-1].body


def test_a_write_says_what_is_meant(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Dry run, manager and validation go into the query, beside the caller's own."""
    session.post(
        PODS,
        {"metadata": {"name": "b"}},
        {"pretty": True},
        dry_run=True,
        field_manager="me",
        field_validation="Strict",
    )
    wanted = {"pretty": "true", "dryRun": "All"}
    wanted |= {"fieldManager": "me", "fieldValidation": "Strict"}
    assert wanted == fake.requests[-1].query


def test_a_program_is_named_to_the_server(fake: testing.Server) -> None:
    """Whoever reads the audit log knows whom to ask."""
    with kubetls.session(fake.config, user_agent="sweeper/2.0") as session:
        session.get("/version")
    named = fake.requests[-1].headers["user-agent"]
    assert named.startswith(f"sweeper/2.0 kubetls/{kubetls.__version__} (")


def test_an_error_says_where_to_look(tmp_path: Path) -> None:
    """Audit id and the queue that refused, for those who keep the server's logs."""
    headers = ("Audit-Id: a1", "X-Kubernetes-PF-FlowSchema-UID: f1")
    priority = "X-Kubernetes-PF-PriorityLevel-UID: p1"
    given = refusal(429, "TooManyRequests", *headers, priority)
    with Server(GOOD, tmp_path, [given]) as server, open_session(server) as session:
        with pytest.raises(kubetls.TooManyRequests) as caught:
            session.get(PODS)
        error = caught.value
        found = (error.audit_id, error.flow_schema_uid, error.priority_level_uid)
        assert ("a1", "f1", "p1") == found


@pytest.mark.parametrize(
    ("method", "reason", "error"),
    [
        ("post", "", kubetls.AlreadyExists),
        ("post", "Conflict", kubetls.Conflict),
        ("put", "", kubetls.Conflict),
        ("put", "AlreadyExists", kubetls.AlreadyExists),
    ],
)
def test_409_is_told_apart(
    method: str, reason: str, error: type[Exception], tmp_path: Path
) -> None:
    """By its reason; without one a creation met what is there."""
    given = refusal(409, reason) if reason else response(b"", status="409 Conflict")
    with (
        Server(GOOD, tmp_path, [given]) as server,
        open_session(server) as session,
        pytest.raises(error),
    ):
        getattr(session, method)(PODS, {})


def test_bodies_are_not_logged(
    session: kubetls.Session, caplog: pytest.LogCaptureFixture
) -> None:
    """#2258, CVE-2019-11250: Secrets and tokens in debug logs."""
    maps = kubetls.path("v1", "secrets", namespace="default")
    with caplog.at_level(logging.DEBUG):
        secret = {"metadata": {"name": "s"}, "data": {"password": "aHVudGVyMg=="}}
        session.post(maps, secret)
        assert "aHVudGVyMg==" == session.get(f"{maps}/s")["data"]["password"]
        list(session.list(maps))
    assert "/secrets" in caplog.text
    assert "aHVudGVyMg" not in caplog.text
    assert str(session.authorization()) not in caplog.text


# ------------------------------------------------------------------ streams


def test_a_silent_watch_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """#124, #2145, #2462: it stays open, and no event ever comes again."""
    monkeypatch.setattr(watches, "WINDOW_SECONDS", 1)
    monkeypatch.setattr(watches, "MARGIN_SECONDS", 0.2)
    event = {"type": "ADDED", "object": POD}
    numbers = iter(range(9))

    def talk(tls: ssl.SSLSocket, _request: Request) -> None:
        if next(numbers):
            tls.sendall(chunked(json.dumps(event).encode() + b"\n"))
        else:
            tls.sendall(CHUNKED)
            time.sleep(4)

    with (
        Server(GOOD, tmp_path, [talk]) as server,
        open_session(server) as session,
        session.watch(PODS, "5") as watch,
    ):
        assert "ADDED" == next(watch).type
        assert "timeoutSeconds=1&" in server.requests[0].target
        assert "allowWatchBookmarks=true" in server.requests[0].target
        assert "resourceVersion=5" in server.requests[1].target


def test_windows_that_end_at_once_mean_expired(tmp_path: Path) -> None:
    """Kubernetes #137089: some servers end a stale watch so, and send no 410."""
    answers: list[Answer] = [EMPTY, chunked(), chunked(), chunked(), EMPTY, chunked()]
    with (
        Server(GOOD, tmp_path, answers) as server,
        open_session(server) as session,
        session.list_watch(PODS) as stream,
    ):
        assert ["SYNCED", "SYNCED"] == [next(stream).type, next(stream).type]
        assert "limit=500" in server.requests[4].target


def test_a_version_from_the_future_is_waited_for(tmp_path: Path) -> None:
    """A lagging server says "too large resource version": the same is asked again."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large"}
    given = refusal(504, "Timeout", details={"causes": [cause]})
    event = json.dumps({"type": "ADDED", "object": POD}).encode() + b"\n"
    with (
        Server(GOOD, tmp_path, [given, chunked(event)]) as server,
        open_session(server) as session,
        session.watch(PODS, "77") as watch,
    ):
        assert "ADDED" == next(watch).type
        assert all("resourceVersion=77" in one.target for one in server.requests)


@pytest.mark.parametrize(
    ("name", "selected"),
    [
        ("a", "a"),
        ("a:b", "a:b"),
        ("a,b=c", r"a\,b\=c"),
        ("a\\", r"a\\"),
        ("\xe9", "\xe9"),
    ],
)
def test_a_name_is_one_term_of_a_selector(
    name: str, selected: str, tmp_path: Path
) -> None:
    """What waits for "a,spec.x=y" does not wait for another object."""
    roles = "rbac.authorization.k8s.io/v1"
    with Server(GOOD, tmp_path, [EMPTY]) as server, open_session(server) as session:
        assert not session.wait(kubetls.path(roles, "roles", name), "delete", 5)
        target = server.requests[0].target
        with pytest.raises(kubetls.ConfigError, match="names no object"):
            session.wait("/api/v1/pods/", "delete", 5)
    query = parse_qs(urlsplit(target).query)
    assert [f"metadata.name={selected}"] == query["fieldSelector"]


def test_a_followed_log_may_be_silent(tmp_path: Path) -> None:
    """#199, #716, #1234: no timeout of requests ends it; a cut is no end."""

    def talk(tls: ssl.SSLSocket, _request: Request) -> None:
        tls.sendall(CHUNKED + b"4\r\none\n\r\n")
        time.sleep(2)
        tls.sendall(b"4\r\ntwo\n\r\n")

    short = kubetls.Timeout(connect=5, read=1)
    with (
        Server(GOOD, tmp_path, [talk]) as server,
        kubetls.session(config_for(server), timeout=short) as session,
    ):
        lines = session.logs("default", "a", follow=True)
        assert [b"one", b"two"] == [next(lines), next(lines)]
        with pytest.raises(kubetls.WatchClosed):
            next(lines)
