"""The session against the scripted API server: retries, rotation, lists, watches."""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec
import pytest
from urllib3.util.connection import is_connection_dropped

import kubetls
from kubetls import testing
from kubetls.client.stream import Stream
from kubetls.transport.connection import VerifiedConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = kubetls.Retries(backoff=0.01, backoff_max=0.05)
PODS = kubetls.path("v1", "pods", namespace="default")


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "status": {"phase": "Running"},
    }


@pytest.fixture
def fake() -> Iterator[testing.Server]:
    """Lend a server with three pods."""
    with testing.server([pod("a"), pod("b"), pod("c")]) as server:
        yield server


@pytest.fixture
def session(fake: testing.Server) -> Iterator[kubetls.Session]:
    """Lend a session with it that does not wait long."""
    timeout = kubetls.Timeout(connect=5, read=5)
    with kubetls.session(fake.config, retries=QUICK, timeout=timeout) as opened:
        yield opened


def of(server: testing.Server, method: str) -> int:
    return sum(request.method == method for request in server.requests)


# ---------------------------------------------------------------------- retries

GET, POST, PUT, GUARDED_PUT, DELETE, GUARDED_DELETE = range(6)


def send(session: kubetls.Session, what: int) -> None:
    body = {"metadata": {"name": "new"}}
    match what:
        case 0:
            session.get(PODS)
        case 1:
            session.post(PODS, body)
        case 2:
            session.put(f"{PODS}/a", {"metadata": {"name": "a"}})
        case 3:
            session.put(f"{PODS}/a", session.get(f"{PODS}/a"))
        case 4:
            session.delete(f"{PODS}/a")
        case 5:
            uid = session.get(f"{PODS}/a")["metadata"]["uid"]
            session.delete(f"{PODS}/a", uid=uid)


METHODS = ["GET", "POST", "PUT", "PUT", "DELETE", "DELETE"]


@pytest.mark.parametrize(
    ("status", "retry_after", "repeated"),
    [
        (429, 0, {GET, POST, PUT, GUARDED_PUT, DELETE, GUARDED_DELETE}),
        (429, None, {GET}),
        (503, 0, {GET, GUARDED_PUT, GUARDED_DELETE}),
        (503, None, {GET}),
        (500, None, {GET}),
        (504, None, {GET}),
        (403, 0, set()),
        (404, 0, set()),
        (409, 0, set()),
        (422, 0, set()),
    ],
)
@pytest.mark.parametrize("what", [GET, POST, PUT, GUARDED_PUT, DELETE, GUARDED_DELETE])
def test_only_what_cannot_happen_twice_is_sent_again(
    fake: testing.Server,
    session: kubetls.Session,
    what: int,
    status: int,
    retry_after: float | None,
    repeated: set[int],
) -> None:
    """The table of `retry`, on the wire."""
    fake.fail_next(status, retry_after=retry_after, method=METHODS[what])
    if what in {GUARDED_PUT, GUARDED_DELETE}:
        # They get the object first, which is not what fails here.
        assert METHODS[what] != "GET"
    if what in repeated:
        send(session, what)
        assert 2 == of(fake, METHODS[what])
    else:
        with pytest.raises(kubetls.ApiError) as caught:
            send(session, what)
        assert status == caught.value.status
        assert 1 == of(fake, METHODS[what])


def test_retry_after_is_waited_for(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """At least as long as the server asks."""
    fake.fail_next(429, retry_after=1, method="POST")
    started = time.monotonic()
    session.post(PODS, {"metadata": {"name": "new"}})
    assert time.monotonic() - started >= 1


def test_a_wait_beyond_the_limit_is_an_error(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Nobody is kept waiting for an hour."""
    fake.fail_next(429, retry_after=3600)
    with pytest.raises(kubetls.TooManyRequests) as caught:
        session.get(PODS)
    assert 3600 == caught.value.retry_after


def test_a_truncated_body_is_no_answer(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """A read is repeated; a write is not, and says that it may have happened."""
    fake.cut_next(after=10, method="GET")
    assert 3 == len(session.get(PODS)["items"])
    fake.cut_next(after=10, method="POST")
    with pytest.raises(kubetls.ConnectionFailed) as caught:
        session.post(PODS, {"metadata": {"name": "new"}})
    assert caught.value.sent
    assert 1 == of(fake, "POST")


def test_silence_ends_with_the_read_timeout(fake: testing.Server) -> None:
    """The default is finite, and None is not what a number means."""
    timeout = kubetls.Timeout(connect=5, read=0.2)
    fake.stall_next(3)
    with (
        kubetls.session(fake.config, timeout=timeout) as session,
        pytest.raises(kubetls.ReadTimeout),
    ):
        session.get(PODS)


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("config", {"config": "~/.kube/config"}),
        ("timeout", {"timeout": 30}),
        ("timeout", {"timeout": None}),
        ("timeout", {"timeout": (3, 4)}),
        ("retries", {"retries": 3}),
        ("retries", {"retries": None}),
        ("pool_size", {"pool_size": 0}),
        ("pool_size", {"pool_size": "many"}),
        ("namespace", {"namespace": "a/../b"}),
    ],
)
def test_an_argument_that_is_none_is_refused_at_once(
    fake: testing.Server, source: str, arguments: dict[str, Any]
) -> None:
    """Not with the first request, as a broken server, nor with the first failure."""
    with pytest.raises(kubetls.ConfigError) as caught:
        kubetls.session(**{"config": fake.config} | arguments)
    assert source == caught.value.source


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1e300, "5", True])
def test_a_timeout_is_a_number_of_seconds(value: Any) -> None:
    """None alone is for ever; nothing means it by accident."""
    for name in ("connect", "read"):
        with pytest.raises(kubetls.ConfigError, match=rf"Timeout\.{name}: seconds"):
            kubetls.Timeout(**{name: value})


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "5", None])
def test_a_retry_policy_is_numbers(value: Any) -> None:
    """A limit that compares with nothing would be none."""
    for name in ("attempts", "budget", "backoff", "backoff_max", "retry_after_max"):
        with pytest.raises(kubetls.ConfigError, match=rf"Retries\.{name}: a number"):
            kubetls.Retries(**{name: value})


def test_a_request_is_what_it_says(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """A timeout or method that is none is the caller's error, and nothing is sent."""
    with pytest.raises(kubetls.ConfigError, match=r"kubetls\.Timeout"):
        session.get("/version", timeout=5)  # type: ignore[arg-type]
    with pytest.raises(kubetls.ConfigError, match=r"kubetls\.Retries"):
        session.request("GET", "/version", retries=3)  # type: ignore[arg-type]
    for method in ("get", "", "GET /a HTTP/1.1\r\nX: y"):
        with pytest.raises(kubetls.ConfigError, match="capital letters"):
            session.request(method, "/version")
    assert [] == fake.requests


def test_arguments_come_in_the_order_of_the_contract(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """The names stay, and so do their places."""
    session.patch(f"{PODS}/a", pod("a"), "apply", "me", True)
    wanted = {"fieldManager": "me", "force": "true"}
    assert wanted == fake.requests[-1].query
    with session.request("GET", "/version", None, None, {"a": 1}, True) as response:
        assert b"v1.36.0" in b"".join(response.stream())
    list(session.logs("default", "a", "main", False, 5, 60, True, True))
    wanted = {"container": "main", "tailLines": "5", "sinceSeconds": "60"}
    wanted |= {"timestamps": "true", "previous": "true"}
    assert wanted == fake.requests[-1].query


class TimeLimitExceeded(Exception):
    """As task queues raise from a signal handler."""


@pytest.mark.parametrize("stream", [False, True])
def test_an_exception_of_a_signal_handler_stays_what_it_is(
    fake: testing.Server, session: kubetls.Session, *, stream: bool
) -> None:
    """Somebody waits for it; and no frame with a header comes along."""

    def interrupt(*_: object) -> None:
        raise TimeLimitExceeded

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        fake.slow_next(4) if stream else fake.stall_next(4)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TimeLimitExceeded) as caught:
            list(session.request("GET", PODS, stream=stream).stream())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    told = traceback.TracebackException.from_exception(
        caught.value, capture_locals=True
    )
    shown = "".join(told.format())
    assert "urllib3" not in shown
    assert str(session.authorization()) not in shown
    assert session.get(PODS)


def test_warnings_are_logged_once(
    fake: testing.Server, session: kubetls.Session, caplog: pytest.LogCaptureFixture
) -> None:
    """What the API server warns of reaches the log, escaped, and not every time."""
    with caplog.at_level(logging.WARNING, "kubetls"):
        for _ in range(3):
            fake.warn_next("v1 Old is deprecated in v1.40+")
            session.get(PODS)
    assert 1 == sum("v1 Old is deprecated" in text for text in caplog.messages)


def test_a_restart_of_the_server_is_survived(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Idle connections that the server dropped are not handed to a request."""
    session.get(PODS)
    fake.stop()
    fake.start()
    session.post(PODS, {"metadata": {"name": "new"}})
    assert 1 == of(fake, "POST")


# ---------------------------------------------------------------------- credentials


def test_a_rotated_token_costs_one_resend(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """The server refused before it did anything, so a POST is sent again as well."""
    fake.rotate_token()
    session.post(PODS, {"metadata": {"name": "new"}})
    assert 2 == of(fake, "POST")
    session.get(PODS)
    assert 1 == of(fake, "GET")


def test_an_unchanged_token_is_not_sent_again(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """A 401 that reading again does not mend is an error at once."""
    fake.rotate_token(publish=False)
    with pytest.raises(kubetls.Unauthorized):
        session.get(PODS)
    assert 1 == of(fake, "GET")


def test_a_rotated_authority_is_followed(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """A path that is refused may end at a CA that was just published."""
    session.get(PODS)
    fake.rotate_certificate(authority=True)
    fake.stop()  # the connections there are were verified by the old CA
    fake.start()
    session.post(PODS, {"metadata": {"name": "new"}})
    assert 1 == of(fake, "POST")


def test_an_unpublished_authority_is_refused(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Whoever answers with another CA's certificate gets nothing."""
    fake.rotate_certificate(authority=True, publish=False)
    with pytest.raises(kubetls.ChainRefused):
        session.get(PODS)
    assert [] == fake.requests


def test_many_threads_live_through_rotations(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Tokens and certificates change under load, and no request fails."""
    failures: list[BaseException] = []
    ends = time.monotonic() + 3

    def ask() -> None:
        try:
            while time.monotonic() < ends:
                session.get(f"{PODS}/a")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    while time.monotonic() < ends - 0.3:
        fake.rotate_token()
        time.sleep(0.1)
        fake.rotate_certificate(authority=True)
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert [] == failures


def test_expiry_is_told(fake: testing.Server, session: kubetls.Session) -> None:
    """`token_expires_at` follows what was read last."""
    first = session.token_expires_at
    fake.rotate_token(seconds=7200)
    session.get(PODS)
    assert first is not None
    assert session.token_expires_at is not None
    assert session.token_expires_at > first + 3000


# ---------------------------------------------------------------------- objects


def test_update_goes_on_after_a_conflict(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Somebody is faster twice; the change is made on what they left."""
    others = iter(["1", "2"])

    def change(item: dict[str, Any]) -> None:
        value = next(others, None)
        if value is not None:
            fake.put(pod("a", other=value))
        item["metadata"].setdefault("labels", {})["ours"] = "yes"

    stored = session.update(f"{PODS}/a", change)
    assert {"other": "2", "ours": "yes"} == stored["metadata"]["labels"]


def test_update_gives_up_after_its_attempts(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Never for ever."""

    def change(item: dict[str, Any]) -> dict[str, Any]:
        fake.put(pod("a", n=item["metadata"]["resourceVersion"]))
        return item

    with pytest.raises(kubetls.Conflict):
        session.update(f"{PODS}/a", change, attempts=3)
    assert 3 == of(fake, "PUT")


@pytest.mark.parametrize(
    "returned", [{"metadata": {"name": "a"}}, {"metadata": 1}, "text", [], True]
)
def test_update_refuses_an_unguarded_object(
    session: kubetls.Session, returned: Any
) -> None:
    """Without a resourceVersion the put would overwrite what others did."""
    with pytest.raises(kubetls.ConfigError, match="resourceVersion"):
        session.update(f"{PODS}/a", lambda _: returned)


def test_update_makes_no_change_twice(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """The answer is cut, so the change may have been made: the caller has to know."""

    def count(item: dict[str, Any]) -> None:
        labels = item["metadata"]["labels"]
        labels["n"] = str(int(labels.get("n", "0")) + 1)

    fake.cut_next(method="PUT")
    with pytest.raises(kubetls.ConnectionFailed) as caught:
        session.update(f"{PODS}/a", count)
    assert caught.value.sent
    assert "1" == session.get(f"{PODS}/a")["metadata"]["labels"]["n"]


def test_apply_finds_the_path_by_kind(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """A custom resource as well; discovery is asked once."""
    fake.define("example.com/v1", "Gadget", "gadgets")
    gadget = {
        "apiVersion": "example.com/v1",
        "kind": "Gadget",
        "metadata": {"name": "g"},
    }
    session.apply(gadget, "me")
    session.apply(gadget | {"spec": {"size": 1}}, "me", force=True)
    paths = Counter(request.path for request in fake.requests)
    assert 1 == paths["/apis/example.com/v1"]
    assert 2 == paths["/apis/example.com/v1/namespaces/default/gadgets/g"]
    assert "true" == fake.requests[-1].query["force"]
    assert "application/apply-patch+yaml" == fake.requests[-1].headers["content-type"]


@pytest.mark.parametrize(
    ("change", "source"),
    [
        ({"kind": "Nothing"}, "kind"),
        ({"kind": ""}, "kind"),
        ({"apiVersion": None}, "apiVersion"),
        ({"apiVersion": "v1/../x"}, "api_version"),
        ({"metadata": {}}, "metadata.name"),
        ({"metadata": {"name": "a/b"}}, "name"),
        ({"kind": "Node", "metadata": {"name": "n", "namespace": "x"}}, "namespace"),
    ],
)
def test_apply_refuses_what_has_no_path(
    session: kubetls.Session, change: dict[str, Any], source: str
) -> None:
    """Named by its field, before anything is written."""
    with pytest.raises(kubetls.ConfigError) as caught:
        session.apply(pod("a") | change, "me")
    assert source in caught.value.source


def test_wait_sees_a_condition(fake: testing.Server, session: kubetls.Session) -> None:
    """As soon as it is there, of this generation."""

    def later() -> None:
        time.sleep(0.2)
        fake.put(pod("a") | {"status": {"conditions": [ready("False")]}})
        fake.put(pod("a") | {"status": {"conditions": [ready("True")]}})

    thread = threading.Thread(target=later)
    thread.start()
    found = session.wait(f"{PODS}/a", "condition=Ready", timeout=10)
    thread.join()
    assert found is not None
    assert [ready("True")] == found["status"]["conditions"]


def ready(status: str) -> dict[str, str]:
    return {"type": "Ready", "status": status}


@pytest.mark.parametrize(
    "strange",
    [
        {"status": "fine"},
        {"status": {"conditions": {"Ready": "True"}}},
        {"status": {"conditions": ["Ready", None, {"type": "Ready"}]}},
    ],
)
def test_wait_passes_over_conditions_of_other_shapes(
    fake: testing.Server, session: kubetls.Session, strange: dict[str, Any]
) -> None:
    """A custom resource may have any status; it is not ready by it."""
    fake.put(pod("a") | strange)
    with pytest.raises(kubetls.WaitTimeout):
        session.wait(f"{PODS}/a", "condition=Ready", 0.5)
    ready = {"type": "Ready", "status": "True", "observedGeneration": "new"}
    fake.put(pod("a") | {"status": {"conditions": [None, ready]}})
    assert session.wait(f"{PODS}/a", "condition=Ready", 5)


def test_wait_for_deletion_and_creation(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Not there is a state; not seen yet is none."""
    assert session.wait(f"{PODS}/nobody", "delete", timeout=10) is None
    threading.Timer(0.2, fake.put, [pod("later")]).start()
    assert session.wait(f"{PODS}/later", "create", timeout=10) is not None
    assert session.wait(f"{PODS}/a", bool, timeout=10) is not None


def test_wait_says_what_it_saw(session: kubetls.Session) -> None:
    """A timeout names the object, the wish and the last state."""
    with pytest.raises(kubetls.WaitTimeout, match=r"condition=Ready.*Running"):
        session.wait(f"{PODS}/a", "condition=Ready", timeout=1)


def test_deletion_with_an_empty_guard_is_refused(session: kubetls.Session) -> None:
    """It would delete whatever has the name by now."""
    with pytest.raises(kubetls.ConfigError):
        session.delete(f"{PODS}/a", uid="")


# ---------------------------------------------------------------------- lists


@pytest.mark.parametrize("selector", [{"app": "web"}, ["app=web"], b"app=web"])
@pytest.mark.parametrize("name", ["labels", "fields"])
@pytest.mark.parametrize("verb", ["list", "watch", "list_watch"])
def test_selector_that_is_no_text_is_refused(
    session: kubetls.Session, verb: str, name: str, selector: Any
) -> None:
    """Other clients take a dict; its keys alone would select more than was meant."""
    with pytest.raises(kubetls.ConfigError, match=f"{name}: a selector as text"):
        getattr(session, verb)(PODS, **{name: selector})


def test_mapping_in_a_query_is_refused(
    session: kubetls.Session, fake: testing.Server
) -> None:
    """A deletion by selector would take whatever has the label."""
    query = {"labelSelector": {"app": "web"}}
    with pytest.raises(kubetls.ConfigError, match=r"query\['labelSelector'\]"):
        session.delete(PODS, query=query)
    assert not fake.requests


class Meta(msgspec.Struct, rename="camel"):
    name: str
    uid: str
    resource_version: str
    namespace: str = ""


class Small(msgspec.Struct):
    metadata: Meta


def names(items: Any) -> list[str]:
    return sorted(item["metadata"]["name"] for item in items)


def test_pages_are_one_snapshot(fake: testing.Server, session: kubetls.Session) -> None:
    """What is created between two pages is not in the list."""
    listing = session.list(PODS, limit=2)
    first = next(listing)
    fake.put(pod("d"))
    assert ["a", "b", "c"] == names([first, *listing])
    assert {"Pod"} == {item["kind"] for item in session.list(PODS)}


def test_a_list_begins_again_when_its_token_expires(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Whole; and a consumer by name does not keep what is gone."""
    listing = session.list(PODS, limit=1)
    next(listing)
    fake.delete(pod("a"))
    fake.expire()
    assert ["b", "c"] == names(listing)


def test_a_list_by_name_forgets_what_is_gone(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """What only the pages before a new beginning had is no object of the list."""
    listing = session.list(PODS, limit=1)

    def expire() -> None:
        fake.delete(pod("a"))
        fake.expire()

    fake.slow_next(0.0)  # the first page is at once, the second one after the change
    fake.stall_next(0.6)
    threading.Timer(0.3, expire).start()
    assert [("default", "b"), ("default", "c")] == sorted(listing.by_name())


def test_what_is_no_list_is_an_error(session: kubetls.Session) -> None:
    """One object is not an empty list."""
    with pytest.raises(kubetls.ProtocolError, match="items"):
        list(session.list(f"{PODS}/a"))


def test_a_decoder_makes_its_type(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """In lists and watches; dicts where there is nothing to decode."""
    listing = session.list(PODS, decoder=Small)
    assert ["a", "b", "c"] == sorted(item.metadata.name for item in listing)
    with session.watch(PODS, listing.resource_version, decoder=Small) as watch:
        fake.put(pod("d"))
        event = next(watch)
        assert isinstance(event.object, Small)
        assert "d" == event.object.metadata.name


class SeenMeta(TypedDict, total=False):
    name: str
    namespace: str
    uid: str
    resourceVersion: str


class Seen(TypedDict, total=False):
    metadata: SeenMeta


class SeenWithoutUid(TypedDict):
    metadata: dict[str, str]


def test_a_typed_dict_keeps_what_it_names(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Dicts all the same, but without the rest; keys are told apart as ever."""
    with session.list_watch(PODS, decoder=Seen) as watch:
        events = [next(watch) for _ in range(4)]
        assert ["ADDED", "ADDED", "ADDED", "SYNCED"] == [e.type for e in events]
        for event in events[:3]:
            assert {"metadata"} == set(event.object)
            assert {"name", "namespace", "uid", "resourceVersion"} == set(
                event.object["metadata"]
            )
        fake.delete(pod("a"))
        gone = next(watch)
        assert ("DELETED", "a") == (gone.type, gone.object["metadata"]["name"])
        assert {("default", "b"), ("default", "c")} == set(watch.objects)


class NoMetadata(msgspec.Struct):
    name: str


class Strict(msgspec.Struct):
    metadata: Meta
    missing: int


@pytest.mark.parametrize("decoder", [dict, NoMetadata, int, SeenWithoutUid])
def test_a_decoder_needs_to_tell_objects_apart(
    session: kubetls.Session, decoder: type
) -> None:
    """Refused before anything is asked."""
    with pytest.raises(kubetls.ConfigError, match="decoder"):
        session.list(PODS, decoder=decoder)


def test_a_decoder_that_does_not_fit_is_an_error(session: kubetls.Session) -> None:
    """It names the field, and is no empty list."""
    with pytest.raises(kubetls.ProtocolError, match="missing"):
        list(session.list(PODS, decoder=Strict))


# ---------------------------------------------------------------------- watches


def next_of(watch: Any, kind: str) -> Any:
    """Return the next event of a type."""
    while event := watch.next(5):
        if event.type == kind:
            return event
    raise AssertionError(kind)


@pytest.mark.parametrize("fault", ["cut", "end_watches"])
def test_a_watch_goes_on_where_it_was(
    fake: testing.Server, session: kubetls.Session, fault: str
) -> None:
    """After a cut and after the end of a window: nothing lost, nothing twice."""
    version = session.get(PODS)["metadata"]["resourceVersion"]
    with session.watch(PODS, version) as watch:
        fake.put(pod("d"))
        assert "d" == next_of(watch, "ADDED").object["metadata"]["name"]
        getattr(fake, fault)()
        fake.put(pod("e"))
        assert "e" == next_of(watch, "ADDED").object["metadata"]["name"]


def test_a_watch_raises_expired(fake: testing.Server, session: kubetls.Session) -> None:
    """As event inside the stream and as answer."""
    version = session.get(PODS)["metadata"]["resourceVersion"]
    with session.watch(PODS, version) as watch:
        fake.put(pod("d"))
        next_of(watch, "ADDED")
        fake.expire()
        with pytest.raises(kubetls.Expired):
            watch.next(5)
    with session.watch(PODS, version) as watch, pytest.raises(kubetls.Expired):
        watch.next(5)


def test_a_refused_watch_is_no_silence(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """403 is raised, in a list_watch as well."""
    fake.fail_next(403, times=2)
    with session.watch(PODS, "1") as watch, pytest.raises(kubetls.Forbidden):
        next(watch)
    with session.list_watch(PODS) as watch, pytest.raises(kubetls.Forbidden):
        next(watch)


def test_429_keeps_the_position(fake: testing.Server, session: kubetls.Session) -> None:
    """A watch cache that is being built is waited for, without a new list."""
    with session.list_watch(PODS) as watch:
        next_of(watch, "SYNCED")
        fake.fail_next(429, retry_after=0)
        fake.end_watches()
        fake.put(pod("d"))
        next_of(watch, "ADDED")
    lists = [r for r in fake.requests if "watch" not in r.query]
    assert 1 == len(lists)


def test_list_watch_yields_the_difference_after_a_gap(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Deleted, changed, created, and replaced by another of the same name."""
    with session.list_watch(PODS) as watch:
        next_of(watch, "SYNCED")
        fake.fail_next(503, retry_after=0)  # so that it is away for the changes
        fake.expire()
        fake.delete(pod("a"))
        fake.put(pod("b", changed="yes"))
        fake.delete(pod("c"))
        fake.put(pod("c"))
        fake.put(pod("d"))
        seen = []
        while (event := watch.next(5)) and event.type != "SYNCED":
            seen.append((event.type, event.object["metadata"]["name"]))
        last = {name: kind for kind, name in seen}
        assert {"a": "DELETED", "b": "MODIFIED", "c": "ADDED", "d": "ADDED"} == last
        assert ["DELETED", "ADDED"] == [kind for kind, name in seen if name == "c"]
        assert ["b", "c", "d"] == sorted(name for _, name in watch.objects)


def test_what_exists_may_come_from_the_watch_itself(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """No list is asked for; after a gap neither."""
    with session.list_watch(PODS, send_initial_events=True) as watch:
        for _ in range(2):
            next_of(watch, "SYNCED")
            fake.delete(pod("a"))
            next_of(watch, "DELETED")
            fake.put(pod("a"))
            next_of(watch, "ADDED")
            assert ["a", "b", "c"] == sorted(name for _, name in watch.objects)
            fake.expire()
    assert all("watch" in request.query for request in fake.requests)


def test_half_of_what_exists_is_forgotten_after_a_cut(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """An object that went while the stream was away is not there."""
    body = len(json.dumps({"type": "ADDED", "object": fake.objects("v1", "Pod")[0]}))
    fake.cut_next(after=body + 40)
    with session.list_watch(PODS, send_initial_events=True) as watch:
        threading.Timer(0.0, fake.delete, [pod("a")]).start()
        next_of(watch, "SYNCED")
        if ("default", "a") in watch.objects:  # it was faster than the timer
            next_of(watch, "DELETED")
        assert ["b", "c"] == sorted(name for _, name in watch.objects)


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_does_not_offer_it_is_listed(
    fake: testing.Server, session: kubetls.Session, status: int
) -> None:
    """Refused is not empty."""
    fake.fail_next(status)
    with session.list_watch(PODS, send_initial_events=True) as watch:
        next_of(watch, "SYNCED")
        assert ["a", "b", "c"] == sorted(name for _, name in watch.objects)
        fake.put(pod("d"))
        next_of(watch, "ADDED")


@pytest.mark.parametrize("state", ["idle", "listing", "backing off", "refused"])
def test_stop_ends_a_stream_within_a_second(
    fake: testing.Server, session: kubetls.Session, state: str
) -> None:
    """From another thread, whatever it waits for."""
    if state == "listing":
        fake.stall_next(4)
    elif state == "backing off":
        fake.fail_next(503, retry_after=30, times=20)
    elif state == "refused":
        fake.stop()
    watch = session.list_watch(PODS)
    thread = threading.Thread(target=list, args=[watch])
    thread.start()
    time.sleep(0.5)
    started = time.monotonic()
    watch.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("asked", [61.0, 1e9, 3e11])
def test_a_stream_asks_again_within_a_minute(
    monkeypatch: pytest.MonkeyPatch, asked: float
) -> None:
    """A Retry-After of years, or a date in the year 9999, does not end a controller."""
    waited: list[float] = []
    stream = Stream()
    monkeypatch.setattr(stream, "pause", waited.append)
    refused = kubetls.TooManyRequests(429, "TooManyRequests", "no", retry_after=asked)
    stream._back_off(1, refused)
    assert [60.0] == waited


def test_a_stop_that_comes_late_hits_no_other_request(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """The connection of a finished list serves others; their request goes on."""
    for _ in range(30):
        watch = session.list_watch(PODS)
        next(watch)
        thread = threading.Thread(target=watch.stop)
        thread.start()
        session.post(PODS, {"metadata": {"generateName": "x"}})
        thread.join()


def test_a_lease_that_is_over_does_nothing(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """The law behind the test above, without luck."""
    session.get(PODS)
    pool = session._exchange._live_pool()
    connection = pool._get_conn()
    old, new = connection.lease(), connection.lease()
    old.interrupt()
    assert not is_connection_dropped(connection)
    new.interrupt()
    assert is_connection_dropped(connection)
    connection.close()


def test_a_stop_meets_a_connection_that_just_closes(session: kubetls.Session) -> None:
    """Its own thread may be through with it between two lines of stop()."""
    session.get(PODS)
    connection = session._exchange._live_pool()._get_conn()
    lease, sock = connection.lease(), connection.sock
    seen = [None, sock]
    closing = property(lambda _: seen.pop())
    connection.__class__ = type("Closing", (VerifiedConnection,), {"sock": closing})
    lease.interrupt()
    assert b"" == sock.recv(1)
    sock.close()


def test_next_gives_up_in_time_and_goes_on(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """None is "nothing yet"; an event that comes later is not lost."""
    with session.list_watch(PODS) as watch:
        next_of(watch, "SYNCED")
        assert watch.next(0.1) is None
        fake.put(pod("d"))
        assert "d" == next_of(watch, "ADDED").object["metadata"]["name"]


def test_end_is_told_from_a_wait_that_was_in_vain(session: kubetls.Session) -> None:
    """Both are None to `next`; a loop around it must not go on for ever."""
    watch = session.list_watch(PODS)
    next_of(watch, "SYNCED")
    assert watch.next(0.1) is None
    assert not watch.stopped
    watch.stop()
    assert watch.next(5) is None
    assert watch.stopped


def test_a_limit_of_waiting_may_be_any_number(session: kubetls.Session) -> None:
    """What is left of a deadline may be less than nothing, or without end."""
    with session.list_watch(PODS) as watch:
        assert watch.next(-1.0) is None
        assert watch.next(1e300) is not None
        assert watch.next(math.inf) is not None
        with pytest.raises(kubetls.ConfigError, match="timeout: not a number"):
            watch.next(math.nan)
    assert session.wait(f"{PODS}/a", "create", math.inf)
    for seconds in (0, -1):
        with pytest.raises(kubetls.WaitTimeout, match="no answer came"):
            session.wait(f"{PODS}/a", "create", seconds)
    with pytest.raises(kubetls.ConfigError, match="timeout: not a number"):
        session.wait(f"{PODS}/a", "create", math.nan)


def test_a_long_event_is_read_once(
    fake: testing.Server, session: kubetls.Session
) -> None:
    """Megabytes in one line: no quadratic joining, and a limit far above etcd's."""
    version = session.get(PODS)["metadata"]["resourceVersion"]
    with session.watch(PODS, version) as watch:
        fake.put(pod("d", text="x" * 8_000_000))
        started = time.monotonic()
        event = next_of(watch, "ADDED")
        assert 8_000_000 == len(event.object["metadata"]["labels"]["text"])
        assert time.monotonic() - started < 5
