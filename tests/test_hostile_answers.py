"""Answers that are no HTTP, no JSON, without an end, or errors in disguise.

Each is a typed error within seconds: never a hang, never memory without bound, and
never an empty list or half a body taken for an answer.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import traceback
from typing import TYPE_CHECKING

import pytest

from kubetls.client.paths import path
from kubetls.errors import (
    BadRequest,
    ConfigError,
    ConnectionFailed,
    Expired,
    Forbidden,
    InternalError,
    KubeTLSError,
    ProtocolError,
    TooManyRequests,
    WatchClosed,
)
from tests.servers import (
    CHUNKED,
    Answer,
    Request,
    Server,
    answer,
    chunk,
    chunked,
    refusal,
    response,
)
from tests.test_hostile_server import GOOD, TOKEN, open_session

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    import kubetls

LIST = b'{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[]}'
PODS = "/api/v1/pods"
HEAD = b"HTTP/1.1 200 OK\r\n"
SIZE = str(len(LIST)).encode()


def refused(folder: Path, given: Answer) -> KubeTLSError:
    """Return what a list of pods raises; it has ten seconds."""
    raised: list[BaseException] = []

    def run(session: kubetls.Session) -> None:
        try:
            raised.append(AssertionError(f"answered {list(session.list(PODS))}"))
        except Exception as error:
            raised.append(error)

    with Server(GOOD, folder, [given]) as server, open_session(server) as session:
        thread = threading.Thread(target=run, args=[session], daemon=True)
        thread.start()
        thread.join(10)
        assert raised, "it hangs"
    assert isinstance(raised[0], KubeTLSError), raised[0]
    assert 1 == len(str(raised[0]).splitlines())
    return raised[0]


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: " + SIZE + b"\r\nTransfer-Encoding: chunked",
        b"Content-Length: " + SIZE + b"\r\nContent-Length: 5",
        b"Content-Length: " + SIZE + b", " + SIZE,
        b"Content-Length: -1",
        b"Content-Length: +" + SIZE,
        b"Content-Length: 6_2",
        b"Content-Length: abc",
        b"Content-Length:",
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length : " + SIZE,
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"X-No-Framing: yes",
    ],
)
def test_body_whose_end_cannot_be_told_is_an_error(
    fields: bytes, tmp_path: Path
) -> None:
    """http.client reads these to the end of the connection, where a cut ends too."""

    def talk(tls: ssl.SSLSocket, _request: Request) -> None:
        tls.sendall(HEAD + fields + b"\r\n\r\n" + LIST)

    assert isinstance(refused(tmp_path, talk), ProtocolError)


def test_stream_whose_end_cannot_be_told_is_an_error(tmp_path: Path) -> None:
    """The lines of a log are not the log when the connection was cut."""

    def talk(tls: ssl.SSLSocket, _request: Request) -> None:
        tls.sendall(HEAD + b"\r\n" + b"one\ntwo\n")

    with (
        Server(GOOD, tmp_path, [talk]) as server,
        open_session(server) as session,
        pytest.raises(WatchClosed, match="could not be told"),
    ):
        list(session.logs("a", "b"))


@pytest.mark.parametrize(
    ("first", "unit"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (HEAD, b"X: aaaaaaaaaaaaaaaa\r\n" * 1000),
        (HEAD + b"X: ", b"a" * 65536),
        (b"HTTP/1.1 200 ", b"a" * 65536),
        (CHUNKED + b"5;", b"a" * 65536),
        (CHUNKED + b"-1\r\n", b"a" * 65536),
        (CHUNKED + chunk(LIST) + b"0\r\n", b"X: aaaaaaaaaaaaaaaa\r\n" * 1000),
        (CHUNKED + chunk(LIST) + b"0\r\nX: ", b"a" * 65536),
    ],
    ids=[
        "100",
        "header",
        "field",
        "status",
        "extension",
        "size",
        "trailer",
        "trailer field",
    ],
)
def test_flood_has_an_end(first: bytes, unit: bytes, tmp_path: Path) -> None:
    """While data keep arriving no read timeout ends it, so a count does."""

    def talk(tls: ssl.SSLSocket, _request: Request) -> None:
        tls.sendall(first)
        while True:
            tls.sendall(unit)

    assert isinstance(refused(tmp_path, talk), ProtocolError)


def test_chunk_of_less_than_nothing_is_an_error(tmp_path: Path) -> None:
    """In a stream as well, where it would go on without chunks."""

    def talk(tls: ssl.SSLSocket, _request: Request) -> None:
        tls.sendall(CHUNKED + b"-1\r\none\ntwo\n")
        tls.unwrap()

    with (
        Server(GOOD, tmp_path, [talk]) as server,
        open_session(server) as session,
        pytest.raises(WatchClosed, match="negative size"),
    ):
        list(session.logs("a", "b"))


@pytest.mark.parametrize(
    "value",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999",
        "Mon, 01 Jan 2024 99999999999999999999:00:00 GMT",
        "Mon, 01 Jan 2024 00:00:00 -9999",
        "9" * 5000 + " Jan 2024",
        "-1",
        "1e3",
        "nan",
    ],
)
def test_wait_that_is_no_time_is_none(value: str, tmp_path: Path) -> None:
    """A Retry-After that no clock knows leaves the error what it is."""
    error = refused(tmp_path, refusal(429, "TooManyRequests", f"Retry-After: {value}"))
    assert isinstance(error, TooManyRequests)
    assert error.retry_after is None


def test_few_interim_answers_and_trailers_are_passed_over(tmp_path: Path) -> None:
    """They are legal HTTP (RFC 9110 15.2, RFC 9112 7.1.2)."""
    interim = b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" * 5
    whole = CHUNKED + chunk(LIST) + b"0\r\nX: y\r\n\r\n"

    def talk(tls: ssl.SSLSocket, _request: Request) -> None:
        tls.sendall(interim + whole)

    with Server(GOOD, tmp_path, [talk]) as server, open_session(server) as session:
        assert [] == list(session.list(PODS))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        LIST + b"x",
        b"\xff\xfe" + LIST,
        b'{"items":{}}',
        b'{"items":[null]}',
        b'{"items":[1]}',
        b'{"items":[{"a":NaN}]}',
        b'{"items":[{"a":"\xff"}]}',
        b'{"items":[{"a":' + b"9" * 5000 + b"}]}",
        b'{"items":[' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}",
        b"[" * 1_000_000,
        b'{"kind":"Status","status":"Failure","code":500}',
        b'{"kind":"Status","status":"Failure","items":[]}',
        b'{"items":[],"metadata":{"continue":"again"}}',
    ],
    ids=range(17),
)
def test_body_that_is_no_list_is_an_error(body: bytes, tmp_path: Path) -> None:
    """It never counts as an empty one, and depth is no crash."""
    error = refused(tmp_path, response(body))
    assert isinstance(error, ProtocolError | ConnectionFailed)


def test_list_that_expires_again_and_again_ends(tmp_path: Path) -> None:
    """It begins anew once: a server may page what was asked for as a whole."""
    numbers = itertools.count()

    def talk(tls: ssl.SSLSocket, request: Request) -> None:
        metadata = {"continue": f"page-{next(numbers)}"}
        page = answer({"kind": "PodList", "metadata": metadata, "items": []})
        more = "continue=" in request.target
        tls.sendall(refusal(410, "Expired") if more else page)

    assert isinstance(refused(tmp_path, talk), Expired)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"[" * 1_000_000, "too deeply"),
        (b'{"a":' * 300_000, "too deeply"),
        (b"9" * 5000, "out of range"),
        (b'{"a":NaN}', "invalid character"),
        (b"-Infinity", "invalid character"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b"", "truncated"),
    ],
)
def test_body_that_is_no_json_says_why(body: bytes, why: str, tmp_path: Path) -> None:
    """One line, the rule, and nothing of the body."""
    with (
        Server(GOOD, tmp_path, [response(body)]) as server,
        open_session(server) as session,
        pytest.raises(ProtocolError, match=why),
    ):
        session.get("/version")


@pytest.mark.parametrize("method", ["get", "delete"])
def test_failure_that_came_with_200_is_an_error(method: str, tmp_path: Path) -> None:
    """As in client-go, rest/request.go: a Status that is no Success is an error."""
    status = {"kind": "Status", "status": "Failure", "message": "no"}
    answers: list[Answer] = [
        answer(status | {"reason": "Forbidden", "code": 403}),
        answer(status),
        answer({"kind": "Status", "status": "Success"}),
    ]
    with Server(GOOD, tmp_path, answers) as server, open_session(server) as session:
        verb = getattr(session, method)
        with pytest.raises(Forbidden):
            verb("/api/v1/namespaces/a")
        with pytest.raises(InternalError):
            verb("/api/v1/namespaces/a")
        assert "Success" == verb("/api/v1/namespaces/a")["status"]


def test_token_that_a_server_repeats_does_not_show(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Proxies show the header they did not like; errors and warnings get logged."""

    def talk(tls: ssl.SSLSocket, request: Request) -> None:
        said = request.headers["Authorization"]
        assert TOKEN in said
        body = said.encode()
        tls.sendall(response(body, f'Warning: 299 - "{said}"', status="400 Bad"))

    with caplog.at_level(logging.DEBUG):
        error = refused(tmp_path, talk)
    assert isinstance(error, BadRequest)
    assert "Bearer [hidden]" in error.message
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    told = repr(error) + caplog.text + "".join(shown.format())
    assert "Bearer [hidden]" in caplog.text
    assert TOKEN not in told


@pytest.mark.parametrize(
    "line", [b"garbage\x1b[31m\x07", b"HTTP/1.1 200abc", b"HTTP/2.0 200 OK"]
)
def test_what_is_no_http_is_shown_escaped(line: bytes, tmp_path: Path) -> None:
    """A terminal or a log gets one line of printable text."""

    def talk(tls: ssl.SSLSocket, _request: Request) -> None:
        tls.sendall(line + b"\r\n\r\n")

    assert str(refused(tmp_path, talk)).isprintable()


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a%2fb", "a\nb", "\ud800"])
def test_hostile_segment_is_refused(text: str) -> None:
    """One typed error, whatever the text (client-go, rest: TestInvalidSegments)."""
    with pytest.raises(ConfigError):
        path("v1", "pods", text)
    with pytest.raises(ConfigError):
        path("v1", "pods", "x", namespace=text)


@pytest.mark.parametrize(
    "resources",
    [
        None,
        {"a": 1},
        [1, None, "pods"],
        [{"kind": "Pod"}],
        [{"kind": "Pod", "name": 5, "namespaced": True}],
        [{"kind": "Pod", "name": "../secrets", "namespaced": True}],
    ],
)
def test_discovery_of_another_shape_has_no_such_kind(
    resources: object, tmp_path: Path
) -> None:
    """Nothing of it becomes a path, and nothing is written."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    with (
        Server(GOOD, tmp_path, [answer({"resources": resources})]) as server,
        open_session(server) as session,
    ):
        with pytest.raises(ConfigError, match="no kind 'Pod'"):
            session.apply(pod, "me")
        assert ["GET"] == [request.method for request in server.requests]


@pytest.mark.parametrize(
    "bookmark", [{}, {"metadata": None}, {"metadata": {"annotations": [1]}}]
)
def test_bookmark_of_another_shape_ends_nothing(
    bookmark: object, tmp_path: Path
) -> None:
    """What exists was not sent whole, so it is listed."""
    line = json.dumps({"type": "BOOKMARK", "object": bookmark}).encode() + b"\n"
    answers: list[Answer] = [chunked(line), response(LIST), chunked(line)]
    with (
        Server(GOOD, tmp_path, answers) as server,
        open_session(server) as session,
        session.list_watch(PODS, send_initial_events=True) as watch,
    ):
        event = watch.next(10)
        assert event is not None
        assert "SYNCED" == event.type
