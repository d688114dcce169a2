"""Pods and tokens of runners against a real API server, which needs no node for it.

A relay between the two loses answers where no real server does so on demand.
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from flame_backend.backends.kubernetes.admission import Admission, Pending
from flame_backend.backends.kubernetes.disposal import Disposal, Remains
from flame_backend.backends.kubernetes.manifest import LABEL, TOKEN_VOLUME
from flame_backend.backends.kubernetes.monitor import PodEvents
from flame_backend.backends.kubernetes.pods import NONCE, Pods, PodsFull
from flame_backend.errors import LinkUnauthenticated
from tests.cluster.cluster import ClusterUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.control_plane
PARENT = "parent-uid"


class Api:
    """A namespace of the API server with an account, and a session of the admin."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.folder = folder
        self.namespace = f"runners-{secrets.token_hex(4)}"
        plane.kubectl("create", "namespace", self.namespace)
        plane.kubectl("-n", self.namespace, "create", "serviceaccount", "app")
        self.session = self.open(plane.port)

    def open(self, port: int) -> kubetls.Session:
        """Open a session by way of a port."""
        text = self.plane.kubeconfig().replace(f":{self.plane.port}", f":{port}")
        path = self.folder / f"config-{port}"
        path.write_text(text)
        retries = kubetls.Retries(attempts=1)
        return kubetls.session(kubetls.kubeconfig(str(path)), retries=retries)

    def pods(
        self, instance: str = "one", max_pods: int | None = None, **options: Any
    ) -> Pods:
        """Return a pool's pods."""
        session = options.get("session", self.session)
        return Pods(session, self.namespace, instance, PARENT, max_pods)

    def pod(self, name: str, instance: str = "one", nonce: str = "n") -> dict[str, Any]:
        """Return a runner's pod, down to what counts here."""
        token = {"audience": f"{LABEL}/{PARENT}/{name}", "path": "token"}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": {f"{LABEL}/instance": instance, f"{LABEL}/pool": "p"},
                "annotations": {NONCE: nonce, f"{LABEL}/boot-timeout": "60"},
            },
            "spec": {
                "serviceAccountName": "app",
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "flame-runner", "image": "none"}],
                "volumes": [
                    {
                        "name": TOKEN_VOLUME,
                        "projected": {"sources": [{"serviceAccountToken": token}]},
                    }
                ],
            },
        }

    def names(self) -> set[str]:
        """Return the names of all pods there are."""
        path = kubetls.path("v1", "pods", namespace=self.namespace)
        return {pod["metadata"]["name"] for pod in self.session.list(path)}

    def set_phase(self, name: str, phase: str) -> None:
        """Write a pod's status as a kubelet does."""
        path = kubetls.path(
            "v1", "pods", name, namespace=self.namespace, subresource="status"
        )
        self.session.patch(path, {"status": {"phase": phase}})

    def token(self, pod: str, audience: str) -> str:
        """Have the API server sign a token that is bound to a pod."""
        path = kubetls.path(
            "v1",
            "serviceaccounts",
            "app",
            namespace=self.namespace,
            subresource="token",
        )
        bound = {"apiVersion": "v1", "kind": "Pod", "name": pod}
        spec = {
            "audiences": [audience],
            "expirationSeconds": 600,
            "boundObjectRef": bound,
        }
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        token: str = self.session.post(path, body | {"spec": spec})["status"]["token"]
        return token


@pytest.fixture
def api(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Api]:
    found = Api(control_plane, tmp_path)
    yield found
    found.session.close()
    with suppress(ClusterUnavailable):
        control_plane.kubectl(
            "delete", "namespace", found.namespace, "--wait=false", "--now"
        )


class Relay:
    """Passes bytes on; once, it drops the connection in place of the answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.losing = False
        self.lost = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    answers = pair[0] is server
                    thread = threading.Thread(target=self._pass, args=[*pair, answers])
                    self._threads.append(thread)
                    thread.start()

    def _pass(
        self, source: socket.socket, target: socket.socket, answers: bool
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if answers and self.losing:
                    self.losing = False
                    self.lost += 1
                    break
                target.sendall(data)
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._open:
            sock.close()


@contextmanager
def relayed(api: Api) -> Iterator[tuple[Relay, kubetls.Session]]:
    """Lend a session whose next answer may be lost."""
    relay = Relay(api.plane.port)
    session = api.open(relay.port)
    try:
        list(session.list(kubetls.path("v1", "pods", namespace=api.namespace)))
        yield relay, session
    finally:
        session.close()
        relay.close()


# ---------------------------------------------------------------------- creation


def test_post_whose_answer_is_lost_makes_one_pod(api: Api) -> None:
    """It is found again by the nonce of its own POST, with its UID."""
    with relayed(api) as (relay, session):
        relay.losing = True
        uid = api.pods(session=session).create(api.pod("r", nonce="mine"))
        assert 1 == relay.lost
    assert {"r"} == api.names()
    assert api.pods().get("r")["metadata"]["uid"] == uid


def test_same_pod_posted_again_is_the_same(api: Api) -> None:
    """A repetition after an outage makes no twin."""
    pods = api.pods()
    first = pods.create(api.pod("r", nonce="mine"))
    assert first == pods.create(api.pod("r", nonce="mine"))
    assert {"r"} == api.names()


def test_pod_of_somebody_else_is_not_adopted(api: Api) -> None:
    """The name alone proves nothing, nor do labels: AlreadyExists it is."""
    theirs = api.pods().create(api.pod("r", nonce="theirs"))
    with pytest.raises(kubetls.AlreadyExists):
        api.pods().create(api.pod("r", nonce="mine"))
    assert api.pods().get("r")["metadata"]["uid"] == theirs


def test_unknown_field_is_refused(api: Api) -> None:
    """Strict validation: a typing error in a security context is no surprise later."""
    pod = api.pod("r")
    pod["spec"]["containers"][0]["securityContexts"] = {}
    with pytest.raises(kubetls.BadRequest, match="securityContexts"):
        api.pods().create(pod)


def test_max_pods_holds_for_all_processes_of_a_pod_together(api: Api) -> None:
    """Six at once in two pools, room for three: three are there, three were told."""
    start = threading.Barrier(6)
    told: list[str] = []

    def create(number: int) -> None:
        instance = f"i{number % 2}"
        start.wait()
        try:
            api.pods(instance, 3).create(api.pod(f"r{number}", instance))
            told.append("made")
        except PodsFull:
            told.append("full")

    threads = [threading.Thread(target=create, args=[n]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told.count("made") <= 3
    assert told.count("made") == len(api.names())
    # Whoever was told asks again, and there is room as soon as one has ended.
    while len(api.names()) < 3:
        api.pods("i0", 3).create(api.pod(f"again-{len(api.names())}", "i0"))
    with pytest.raises(PodsFull):
        api.pods("i1", 3).create(api.pod("more", "i1"))
    api.set_phase(min(api.names()), "Failed")
    api.pods("i1", 3).create(api.pod("more", "i1"))
    assert "more" in api.names()


def test_pods_of_other_parents_do_not_count(api: Api) -> None:
    """Two replicas of an app have a limit each."""
    pod = api.pod("other")
    source = pod["spec"]["volumes"][0]["projected"]["sources"][0]
    source["serviceAccountToken"]["audience"] = f"{LABEL}/another-parent/other"
    api.pods().create(pod)
    api.pods(max_pods=1).create(api.pod("mine"))
    assert {"other", "mine"} == api.names()


# ---------------------------------------------------------------------- ends


def test_pod_is_deleted_by_its_uid(api: Api) -> None:
    """A successor of the name stays; a pod that is gone already is fine."""
    pods = api.pods()
    first = pods.create(api.pod("r"))
    pods.delete("r", first, 0)
    second = pods.create(api.pod("r"))
    pods.delete("r", first, 0)
    pods.delete("gone", first, 0)
    assert second != first
    assert {"r"} == api.names()


def test_sweep_takes_what_has_ended_and_nothing_that_runs(api: Api) -> None:
    """Ended ones of earlier processes, Pending ones beyond their time."""
    now = dt.datetime.now(dt.UTC)
    old, mine = api.pods("old"), api.pods("mine")
    for name in ("failed", "succeeded", "running", "pending"):
        old.create(api.pod(name, "old"))
    mine.create(api.pod("own-failed", "mine"))
    api.set_phase("failed", "Failed")
    api.set_phase("succeeded", "Succeeded")
    api.set_phase("running", "Running")
    api.set_phase("own-failed", "Failed")
    mine.sweep(now)
    assert {"running", "pending", "own-failed"} == api.names()
    mine.sweep(now + dt.timedelta(seconds=50))
    assert "pending" in api.names()
    mine.sweep(now + dt.timedelta(seconds=70))
    assert {"running", "own-failed"} == api.names()


def test_sweep_leaves_what_a_sibling_keeps_for_a_look(api: Api) -> None:
    """keep_failed: for its time, and then it is swept like any other."""
    sibling, mine = api.pods("sibling"), api.pods("mine")
    kept = api.pod("kept", "sibling")
    kept["metadata"]["annotations"]["flame-backend/keep-failed"] = "300"
    sibling.create(kept)
    sibling.create(api.pod("left", "sibling"))
    for name in ("kept", "left"):
        api.set_phase(name, "Failed")
    now = dt.datetime.now(dt.UTC)
    mine.sweep(now)
    assert {"kept"} == api.names()
    mine.sweep(now + dt.timedelta(seconds=290))
    assert {"kept"} == api.names()
    mine.sweep(now + dt.timedelta(seconds=310))
    assert set() == api.names()


class Clockwork:
    """Does at once what is to be done in some thread, and later in a thread."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def work(self, step: Callable[[], None]) -> None:
        step()

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        thread = threading.Timer(seconds / 10, step)
        self.threads.append(thread)
        thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


def test_deletion_outlives_an_outage_of_the_api_server(api: Api) -> None:
    """Asked for while the server is away, done when it is back."""
    clock = Clockwork()
    pods = api.pods()
    disposal = Disposal(pods, clock.work, clock.later)
    uid = pods.create(api.pod("r"))
    api.plane.stop_apiserver()
    disposal.take(Remains("r", "n", uid, 0))
    assert disposal.knows("r", uid)
    api.plane.restart_apiserver()
    deadline = time.monotonic() + 20
    while api.names() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert set() == api.names()
    clock.join()


def test_pod_whose_uid_was_never_told_is_found_and_deleted(api: Api) -> None:
    """By the nonce of its POST; another pod of the name stays."""
    clock = Clockwork()
    disposal = Disposal(api.pods(), clock.work, clock.later)
    api.pods().create(api.pod("r", nonce="mine"))
    disposal.take(Remains("r", "another", None))
    assert {"r"} == api.names()
    disposal.take(Remains("r", "mine", None, 0))
    assert set() == api.names()


def test_closing_deletes_every_pod_of_the_pool_and_no_other(api: Api) -> None:
    """Those that nobody knew of, too; but none that only bears the label."""
    clock = Clockwork()
    disposal = Disposal(api.pods("one"), clock.work, clock.later)
    api.pods("one").create(api.pod("known", "one"))
    api.pods("one").create(api.pod("stray", "one"))
    api.pods("two").create(api.pod("sibling", "two"))
    foreign = api.pod("foreign", "one")
    del foreign["spec"]["volumes"]
    api.pods("one").create(foreign)
    disposal.take(Remains("known", "n", None, 0), keep=3600 * 10)
    assert {"known", "stray", "sibling", "foreign"} == api.names()
    disposal.close(0)
    assert {"sibling", "foreign"} == api.names()
    for thread in clock.threads:
        thread.cancel()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- events, tokens


def test_events_are_joined_by_uid_and_in_order(api: Api) -> None:
    """Each pod has its own; without the right there are none, and no error."""
    pods = api.pods()
    uids = {name: pods.create(api.pod(name)) for name in ("a", "b")}
    path = kubetls.path("v1", "events", namespace=api.namespace)
    for number, (name, reason) in enumerate([("a", "Pulled"), ("b", "X"), ("a", "Y")]):
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"e{number}"},
            "involvedObject": {
                "kind": "Pod",
                "name": name,
                "namespace": api.namespace,
                "uid": uids[name],
            },
            "reason": reason,
            "lastTimestamp": f"2026-03-01T10:00:0{9 - number}Z",
        }
        api.session.post(path, event)
    events = PodEvents(api.session, api.namespace)
    found = events.of(set(uids.values()))
    assert ["Y", "Pulled"] == [event["reason"] for event in found[uids["a"]]]
    assert ["X"] == [event["reason"] for event in found[uids["b"]]]
    assert [uids["b"]] == list(events.of({uids["b"]}))
    config = json.loads(
        api.plane.kubeconfig(token=api.plane.token("nobody", api.namespace))
    )
    file = api.folder / "nobody"
    file.write_text(json.dumps(config))
    with kubetls.session(kubetls.kubeconfig(str(file))) as session:
        weak = PodEvents(session, api.namespace)
        assert {} == weak.of(set(uids.values()))
        assert not weak.allowed


@pytest.mark.parametrize("review", [False, True])
def test_token_of_a_real_api_server_is_admitted_once(api: Api, review: bool) -> None:
    """Its own pod's, for its own audience; nobody else's, and not when it is gone."""
    pods = api.pods()
    for name in ("r", "other"):
        pods.create(api.pod(name))
    audience = f"{LABEL}/{PARENT}/r"

    def judge() -> Admission:
        found = Admission(api.session, api.namespace, review=review)
        uid = pods.get("r")["metadata"]["uid"]
        found.expect("r", Pending(audience, f"{pods.path}/r", "app", uid))
        return found

    def ask(found: Admission, token: str) -> None:
        facts = {"v": 1, "runner": "r", "python": "p", "pid": 1, "token": token}
        facts["package"] = "0.1.0"
        found.admit(json.dumps(facts).encode(), frozenset(), lambda: True)

    right = api.token("r", audience)
    strangers = {
        "another pod's": api.token("other", audience),
        "another audience": api.token("r", f"{LABEL}/{PARENT}/other"),
        "the API server's": api.plane.token("app", api.namespace),
        "of no pod": api.plane.token("app", api.namespace, audience=audience),
    }
    found = judge()
    for token in strangers.values():
        with pytest.raises(LinkUnauthenticated):
            ask(found, token)
    ask(found, right)
    with pytest.raises(LinkUnauthenticated):
        ask(found, right)
    found = judge()
    pods.delete("r", pods.get("r")["metadata"]["uid"], 0)
    with pytest.raises((LinkUnauthenticated, kubetls.NotFound)):
        ask(found, right)
    # Made again under its name, it is another pod.
    pods.create(api.pod("r"))
    with pytest.raises(LinkUnauthenticated):
        ask(judge(), right)
