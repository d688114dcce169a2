"""Admission: one runner is let in, once; everybody else is not, and changes nothing.

Tokens are really signed. The cluster is a table of what an API server would answer,
as no real one signs what is forged here; tests/integration asks a real one.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from flame_backend.backends.kubernetes.admission import (
    REVIEWS_PATH,
    Admission,
    Pending,
)
from flame_backend.backends.kubernetes.keys import (
    DISCOVERY_PATH,
    JWKS_PATH,
    Keys,
)
from flame_backend.errors import LinkUnauthenticated
from tests.issuer import (
    EXPECTED,
    JWKS,
    NOW,
    P256,
    STRANGER,
    WRONG_CLAIMS,
    bound,
    claims,
    forged,
    jwk,
    sign,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

POD_PATH = "/api/v1/namespaces/apps/pods/runner"
ADDRESS = "10.1.2.3"
REFUSED = (LinkUnauthenticated, kubetls.KubeTLSError)


def runner_pod(**changes: Any) -> dict[str, Any]:
    """Return the runner's pod as the API server has it."""
    found: dict[str, Any] = {
        "metadata": {"name": "runner", "uid": "uid-1"},
        "spec": {"serviceAccountName": "app", "nodeName": "node"},
        "status": {"phase": "Running", "podIPs": [{"ip": ADDRESS}]},
    }
    return {key: part | changes.get(key, {}) for key, part in found.items()}


class Table:
    """What the API server answers, path by path; and what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            JWKS_PATH: JWKS,
            DISCOVERY_PATH: {"issuer": EXPECTED.issuer},
            POD_PATH: runner_pod(),
        }
        self.asked: list[str] = []
        self.pause = 0.0

    def get(self, path: str) -> dict[str, Any]:
        self.asked.append(path)
        time.sleep(self.pause)
        found = self.answers[path]
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(json.dumps(body))
        return {"status": self.answers[path]}


def pending(**changes: Any) -> Pending:
    """Return what the backend expects of the runner."""
    facts = {
        "audience": EXPECTED.audience,
        "path": POD_PATH,
        "service_account": "app",
        "uid": "uid-1",
    }
    return Pending(**(facts | changes))


def admission(
    table: Table | None = None, expected: Pending | None = None, **options: Any
) -> Admission:
    """Return an admission that expects the runner."""
    found = Admission(
        table or Table(), "apps", clock=lambda: NOW, uid_seconds=0.2, **options
    )
    found.expect("runner", expected or pending())
    return found


def hello(token: str | None = None, **changes: Any) -> bytes:
    """Return the body of a HELLO; a right one unless told otherwise."""
    facts = {"v": 1, "runner": "runner", "python": "cpython-3.11", "pid": 1}
    facts["package"] = "0.1.0"
    facts["token"] = sign(claims()) if token is None else token
    return json.dumps(facts | changes).encode()


def ask(
    judge: Admission,
    body: bytes | None = None,
    take: Callable[[], bool] = lambda: True,
    address: str = ADDRESS,
) -> str:
    """Present a HELLO; return the name that was admitted."""
    name, facts = judge.admit(
        hello() if body is None else body, frozenset({address}), take
    )
    assert "token" not in facts
    return name


def test_expected_runner_is_admitted() -> None:
    """With the token of its pod, for any of the cluster's algorithms."""
    assert "runner" == ask(admission())
    assert "runner" == ask(admission(), hello(sign(claims(), P256, "ES256", kid="ec")))
    assert "runner" == ask(admission(), hello(sign(claims(jti=None))))


def test_runner_of_another_version_proves_who_it_is_all_the_same() -> None:
    """Whatever else it says; the backend then ends its boot by name."""
    judge = admission()
    assert "runner" == ask(judge, hello(v=2, more={"x": 1}))
    with pytest.raises(LinkUnauthenticated):
        ask(judge)


@pytest.mark.parametrize("name", forged())
def test_forged_token_admits_nobody_and_changes_nothing(name: str) -> None:
    """The runner itself is admitted right after."""
    judge = admission()
    with pytest.raises(LinkUnauthenticated):
        ask(judge, hello(forged()[name]))
    assert "runner" == ask(judge)


@pytest.mark.parametrize("name", WRONG_CLAIMS)
def test_wrong_claim_admits_nobody_and_changes_nothing(name: str) -> None:
    """Well signed by the cluster, for something else."""
    judge = admission()
    with pytest.raises(LinkUnauthenticated):
        ask(judge, hello(sign(claims(**WRONG_CLAIMS[name]))))
    assert "runner" == ask(judge)


HELLOS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"\x80\x04K\x01.",
    "an array": b"[]",
    "not UTF-8": b'{"v": "\xff"}',
    "a fact missing": b'{"v":1,"runner":"runner"}',
    "a fact more": hello(admin=True),
    "a fact twice": hello()[:-1] + b',"runner":"runner"}',
    "no version": hello(v="1"),
    "a version that is none": hello(v=True),
    "another version, of a stranger": hello(sign(claims(aud=["x"])), v=2),
    "another version, with no more": b'{"v":2,"runner":"runner"}',
    "runner as number": hello(runner=1),
    "token as object": hello(token={"alg": "none"}),
    "deep": b'{"v":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "unknown runner": hello(runner="other"),
    "characters that UTF-8 has not": hello(runner="\ud800"),
    "a huge number": hello()[:-1].replace(b'"pid": 1', b'"pid": ' + b"9" * 5000) + b"}",
}


@pytest.mark.parametrize("name", HELLOS)
def test_malformed_hello_is_refused(name: str) -> None:
    """LinkUnauthenticated is all that comes of it, and nothing changes."""
    judge = admission()
    with pytest.raises(LinkUnauthenticated):
        ask(judge, HELLOS[name])
    assert "runner" == ask(judge)


PODS: dict[str, dict[str, Any]] = {
    "another pod of the name": {"metadata": {"uid": "uid-2"}},
    "being deleted": {"metadata": {"deletionTimestamp": "2026-03-01T10:00:00Z"}},
    "failed": {"status": {"phase": "Failed"}},
    "succeeded": {"status": {"phase": "Succeeded"}},
    "unknown": {"status": {"phase": "Unknown"}},
    "another account": {"spec": {"serviceAccountName": "other"}},
    "another node": {"spec": {"nodeName": "other"}},
}


@pytest.mark.parametrize("name", PODS)
def test_pod_is_looked_up_live(name: str) -> None:
    """A token outlives its pod; the pod itself is asked for, each time."""
    table = Table()
    judge = admission(table)
    table.answers[POD_PATH] = runner_pod(**PODS[name])
    with pytest.raises(LinkUnauthenticated):
        ask(judge)
    table.answers[POD_PATH] = runner_pod()
    assert "runner" == ask(judge)


@pytest.mark.parametrize("path", [POD_PATH, JWKS_PATH, DISCOVERY_PATH])
def test_api_server_that_is_away_burns_nothing(path: str) -> None:
    """Refused for now, admitted with the same token when it is back."""
    table = Table()
    judge = admission(table)
    right = table.answers[path]
    table.answers[path] = kubetls.ServiceUnavailable(503, "ServiceUnavailable", "x")
    token = sign(claims())
    with pytest.raises(REFUSED):
        ask(judge, hello(token))
    assert "503" in judge.trouble("runner")
    table.answers[path] = right
    judge._keys._failed_at = float("-inf")  # a second later
    assert "runner" == ask(judge, hello(token))
    assert "" == judge.trouble("runner")


def test_connection_that_was_cut_burns_nothing() -> None:
    """A peer that gives way in the last moment may come again with its token."""
    judge = admission()
    token = sign(claims())
    with pytest.raises(LinkUnauthenticated, match="cut"):
        ask(judge, hello(token), take=lambda: False)
    assert "runner" == ask(judge, hello(token))


def test_connection_is_taken_in_the_last_step_alone() -> None:
    """Nobody who is refused has been out of the reach of eviction."""
    taken: list[str] = []
    judge = admission()
    for body in [*HELLOS.values(), *map(hello, forged().values())]:
        with pytest.raises(LinkUnauthenticated):
            ask(judge, body, take=lambda: taken.append("x") or True)  # type: ignore[func-returns-value]
    assert [] == taken


def test_second_arrival_is_refused() -> None:
    """A runner has one connection, whoever comes second."""
    judge = admission()
    ask(judge)
    for token in (sign(claims()), sign(claims(jti="id-2"))):
        with pytest.raises(LinkUnauthenticated):
            ask(judge, hello(token))


def test_one_of_many_at_once_is_admitted() -> None:
    """Compare and set: sixteen threads present sixteen right tokens."""
    judge = admission()
    start = threading.Barrier(16)
    admitted: list[str] = []

    def present(number: int) -> None:
        token = sign(claims(jti=f"id-{number}"))
        start.wait()
        with suppress(LinkUnauthenticated):
            admitted.append(ask(judge, hello(token)))

    threads = [threading.Thread(target=present, args=[n]) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["runner"] == admitted


def test_token_is_used_once() -> None:
    """The same runner expected again does not bring its token back to life."""
    judge = admission()
    ask(judge)
    judge.expect("runner", pending())
    with pytest.raises(LinkUnauthenticated, match="before"):
        ask(judge)


def test_account_that_was_made_again_is_refused() -> None:
    """The account's UID is that of the first runner, for the pool's life."""
    judge = admission()
    ask(judge)
    judge.expect("runner", pending())
    other = bound(serviceaccount={"name": "app", "uid": "uid-other"})
    token = sign(claims(jti="id-2", **{"kubernetes.io": other}))
    with pytest.raises(LinkUnauthenticated, match="account"):
        ask(judge, hello(token))


def test_runner_that_was_given_up_is_refused() -> None:
    """Its boot ended before it came."""
    judge = admission()
    judge.forget("runner")
    with pytest.raises(LinkUnauthenticated):
        ask(judge)


def test_runner_that_is_given_up_while_it_is_looked_up_is_refused() -> None:
    """The last step compares again, and takes no connection."""
    table = Table()
    judge = admission(table)
    found = table.get

    def get(path: str) -> dict[str, Any]:
        if path == POD_PATH:
            judge.forget("runner")
        return found(path)

    table.get = get  # type: ignore[method-assign]
    taken: list[bool] = []
    with pytest.raises(LinkUnauthenticated, match="second connection"):
        ask(judge, take=lambda: not taken.append(True))
    assert not taken


def test_what_a_cluster_does_not_say_yet_is_not_held_against_a_runner() -> None:
    """Older API servers name no node in tokens; a pod has its address later.

    Where addresses are enforced it is waited for instead, and refused without.
    """
    table = Table()
    table.answers[POD_PATH] = runner_pod(status={"podIPs": None})
    token = sign(claims(**{"kubernetes.io": bound(node=None)}))
    judge = admission(table)
    assert "runner" == ask(judge, hello(token), address="10.9.9.9")


def test_hello_that_overtakes_the_answer_to_its_post_waits() -> None:
    """The UID comes a moment later, and the runner is admitted."""
    judge = admission(expected=pending(uid=None))
    timer = threading.Timer(0.05, judge.posted, ["runner", "uid-1"])
    timer.start()
    assert "runner" == ask(judge)
    timer.join()


def test_hello_whose_post_is_answered_for_another_pod_is_refused() -> None:
    """What the token says is compared with our own POST's answer, when it is there."""
    judge = admission(expected=pending(uid=None))
    timer = threading.Timer(0.05, judge.posted, ["runner", "uid-2"])
    timer.start()
    with pytest.raises(LinkUnauthenticated, match=r"pod\.uid"):
        ask(judge)
    timer.join()


def test_hello_whose_post_is_never_answered_is_refused() -> None:
    """After its time."""
    with pytest.raises(LinkUnauthenticated, match="POST"):
        ask(admission(expected=pending(uid=None)))


@pytest.mark.parametrize("token", ["", forged()["stranger's key"]])
def test_stranger_waits_for_nothing_and_asks_nothing(token: str) -> None:
    """Only a token of the very pod is worth waiting for, or a request."""
    table = Table()
    judge = Admission(table, "apps", clock=lambda: NOW, uid_seconds=30)
    judge.expect("runner", pending(uid=None))
    began = time.monotonic()
    with pytest.raises(LinkUnauthenticated):
        ask(judge, hello(token))
    assert time.monotonic() - began < 5
    assert POD_PATH not in table.asked


def test_sibling_process_does_not_admit_the_runner_of_another() -> None:
    """Two pools, or two processes of one pod: each has its own runners."""
    sibling = Admission(Table(), "apps", clock=lambda: NOW, uid_seconds=0.1)
    audience = "flame-backend/parent/other"
    sibling.expect("other", pending(audience=audience))
    for body in (hello(), hello(runner="other")):
        with pytest.raises(LinkUnauthenticated):
            ask(sibling, body)


def test_foreign_address_is_logged_or_refused() -> None:
    """Networks may translate addresses, so that it is an option."""
    assert "runner" == ask(admission(), address="10.9.9.9")
    strict = admission(enforce_address=True)
    with pytest.raises(LinkUnauthenticated, match="address"):
        ask(strict, address="10.9.9.9")
    assert "enforce_address" in strict.trouble("runner")
    assert "runner" == ask(strict)


@pytest.mark.parametrize("late", [True, False])
def test_address_that_is_not_known_yet_is_waited_for(late: bool) -> None:
    """A runner dials before its kubelet has told where it is; unknown is refused."""

    class Late(Table):
        def get(self, path: str) -> dict[str, Any]:
            found = super().get(path)
            if path == POD_PATH and late:
                self.answers[POD_PATH] = runner_pod()
            return found

    table = Late()
    table.answers[POD_PATH] = runner_pod(status={"podIPs": None})
    strict = admission(table, enforce_address=True)
    if late:
        assert "runner" == ask(strict)
        return
    with pytest.raises(LinkUnauthenticated, match="address"):
        ask(strict)
    assert "runner" == ask(admission(table))


# ---------------------------------------------------------------------- TokenReview

REVIEW: dict[str, Any] = {
    "authenticated": True,
    "audiences": [EXPECTED.audience],
    "user": {
        "username": "system:serviceaccount:apps:app",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["runner"],
            "authentication.kubernetes.io/pod-uid": ["uid-1"],
        },
    },
}
EXTRA = REVIEW["user"]["extra"]
WRONG_REVIEWS: dict[str, Any] = {
    "nothing": None,
    "not authenticated": REVIEW | {"authenticated": False},
    "authenticated as text": REVIEW | {"authenticated": "true"},
    "an error": REVIEW | {"error": "token expired"},
    "a server that knows no audiences": REVIEW | {"audiences": None},
    "one audience more": REVIEW | {"audiences": [EXPECTED.audience, "x"]},
    "another user": REVIEW | {"user": REVIEW["user"] | {"username": "admin"}},
    "user as text": REVIEW | {"user": "system:serviceaccount:apps:app"},
    "no pod": REVIEW | {"user": REVIEW["user"] | {"extra": {}}},
    "another pod": REVIEW
    | {
        "user": REVIEW["user"]
        | {"extra": EXTRA | {"authentication.kubernetes.io/pod-uid": ["uid-0"]}}
    },
    "another pod's name": REVIEW
    | {
        "user": REVIEW["user"]
        | {"extra": EXTRA | {"authentication.kubernetes.io/pod-name": ["other"]}}
    },
}


def test_review_is_asked_for_when_it_is_wanted() -> None:
    """With the token and its one audience, besides all other checks."""
    table = Table()
    table.answers[REVIEWS_PATH] = REVIEW
    assert "runner" == ask(admission(table, review=True))
    spec = json.loads(table.asked[-1])["spec"]
    assert [EXPECTED.audience] == spec["audiences"]
    with pytest.raises(LinkUnauthenticated):
        ask(admission(table, review=True), hello(forged()["stranger's key"]))


@pytest.mark.parametrize("name", WRONG_REVIEWS)
def test_review_that_is_not_all_right_is_a_refusal(name: str) -> None:
    """Each part of the answer counts."""
    table = Table()
    judge = admission(table, review=True)
    table.answers[REVIEWS_PATH] = WRONG_REVIEWS[name]
    with pytest.raises(LinkUnauthenticated, match="review"):
        ask(judge)
    table.answers[REVIEWS_PATH] = REVIEW
    assert "runner" == ask(judge)


# ---------------------------------------------------------------------- keys


def fetches(table: Table) -> int:
    """Return how often the key set was fetched."""
    return table.asked.count(JWKS_PATH)


def test_boot_storm_fetches_the_keys_once() -> None:
    """All wait for the first one's fetch, and none is refused for it."""
    table = Table()
    table.pause = 0.05
    keys = Keys(table)
    start = threading.Barrier(8)
    found: list[bool] = []

    def want() -> None:
        start.wait()
        found.append(keys.issuer("rsa").knows("rsa"))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [True] * 8 == found
    assert 1 == fetches(table)


def test_unknown_key_refreshes_once_in_a_minute() -> None:
    """Anybody can send a key id, so nobody can make us ask and ask."""
    table, now = Table(), [0.0]
    keys = Keys(table, lambda: now[0])
    for second in range(180):
        now[0] = float(second)
        keys.issuer(f"made-up-{second}")
        keys.issuer("rsa")
    assert 3 == fetches(table)


def test_new_key_is_found_and_an_old_one_goes() -> None:
    """Clusters turn their keys; the key set is fetched again in time."""
    table, now = Table(), [0.0]
    keys = Keys(table, lambda: now[0])
    assert not keys.issuer("rsa").knows("new")
    table.answers[JWKS_PATH] = {"keys": [jwk(STRANGER, "new", "RS256")]}
    now[0] = 61.0
    assert keys.issuer("new").knows("new")
    table.answers[JWKS_PATH] = {"keys": []}
    now[0] = 61.0 + 3601.0
    assert not keys.issuer("new").knows("new")


def test_failed_fetch_is_tried_again_a_second_later() -> None:
    """An API server that was away for a moment does not cost a boot its time."""
    table, now = Table(), [0.0]
    keys = Keys(table, lambda: now[0])
    table.answers[JWKS_PATH] = kubetls.ServiceUnavailable(503, "x", "x")
    with pytest.raises(kubetls.ServiceUnavailable):
        keys.issuer("rsa")
    for _ in range(10):
        with pytest.raises(LinkUnauthenticated):
            keys.issuer("rsa")
    assert 1 == fetches(table)
    table.answers[JWKS_PATH] = JWKS
    now[0] = 1.1
    assert keys.issuer("rsa").knows("rsa")


def test_fetch_that_fails_slowly_is_not_made_again_by_all_who_waited() -> None:
    """An API server that swallows packets costs a minute once, not once for each."""
    now = [0.0]

    class Swallowed(Table):
        def get(self, path: str) -> dict[str, Any]:
            now[0] += 60.0
            return super().get(path)

    table = Swallowed()
    keys = Keys(table, lambda: now[0])
    table.answers[JWKS_PATH] = kubetls.ReadTimeout("10.0.0.1:443", "no answer", True)
    with pytest.raises(kubetls.ReadTimeout):
        keys.issuer("rsa")
    with pytest.raises(LinkUnauthenticated):
        keys.issuer("rsa")
    assert 1 == fetches(table)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (JWKS_PATH, {}),
        (JWKS_PATH, {"keys": {"kid": "rsa"}}),
        (DISCOVERY_PATH, {"jwks_uri": "https://evil.example/keys"}),
        (DISCOVERY_PATH, {"issuer": ["x"]}),
    ],
)
def test_discovery_that_is_none_is_refused(path: str, answer: dict[str, Any]) -> None:
    """And a key set's address in it is never dialled: the paths are fixed."""
    table = Table()
    table.answers[path] = answer
    with pytest.raises(LinkUnauthenticated, match="issuer discovery"):
        ask(admission(table))
    assert {JWKS_PATH, DISCOVERY_PATH} >= set(table.asked)
