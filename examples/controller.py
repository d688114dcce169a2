"""A controller in one file: each Roster's ConfigMap names the pods it selects.

    python examples/controller.py --install     # once: the custom resource's definition
    python examples/controller.py --namespace demo

    apiVersion: example.com/v1
    kind: Roster
    metadata: {name: web}
    spec: {labels: {app: web}, configMap: web-pods}

Shows what controllers are made of, on `kubetls.session()` alone: two list_watches that
outlive restarts of the API server, a work queue by key with back-off, server-side
apply, a status patch, and leader election by a Lease. Several may run; one works.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import heapq
import logging
import signal
import socket
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

import kubetls

if TYPE_CHECKING:
    from collections.abc import Callable

MANAGER: Final = "roster-controller"
GROUP: Final = "example.com/v1"
CORE: Final = "v1"
LEASES: Final = "coordination.k8s.io/v1"

Key = tuple[str, str]

logger = logging.getLogger("roster")

DEFINITION: Final[dict[str, Any]] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "rosters.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"kind": "Roster", "plural": "rosters", "singular": "roster"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "required": ["spec"],
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["labels", "configMap"],
                                "properties": {
                                    "labels": {
                                        "type": "object",
                                        "additionalProperties": {"type": "string"},
                                    },
                                    "configMap": {"type": "string"},
                                },
                            },
                            "status": {
                                "type": "object",
                                "properties": {
                                    "pods": {"type": "integer"},
                                    "observedGeneration": {"type": "integer"},
                                },
                            },
                        },
                    }
                },
            }
        ],
    },
}


class WorkQueue:
    """Keys to work on: each at most once at a time, failed ones later and later."""

    def __init__(self, first: float = 0.1, longest: float = 30.0) -> None:
        self._first = first
        self._longest = longest
        self._changed = threading.Condition()
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._failures: dict[Key, int] = {}

    def add(self, key: Key, after: float = 0.0) -> None:
        """Want a key to be worked on, now or after some seconds; the earliest wins."""
        due = time.monotonic() + after
        with self._changed:
            if due < self._due.get(key, float("inf")):
                self._due[key] = due
                heapq.heappush(self._heap, (due, key))
                self._changed.notify()

    def take(self, timeout: float) -> Key | None:
        """Return the next key that is due; None when there is none in time."""
        ends = time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                while self._heap and self._heap[0][0] <= now:
                    due, key = heapq.heappop(self._heap)
                    if self._due.get(key) == due:
                        del self._due[key]
                        return key
                if now >= ends:
                    return None
                wake = min(ends, self._heap[0][0] if self._heap else ends)
                self._changed.wait(wake - now)

    def done(self, key: Key) -> None:
        """The key's work succeeded."""
        self._failures.pop(key, None)

    def failed(self, key: Key) -> None:
        """The key's work failed; it comes again after a pause that doubles."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        self.add(key, min(self._longest, self._first * 2.0 ** min(count - 1, 16)))


class Leader:
    """Leadership by a Lease: held while it is renewed in time.

    Others' leases are judged by how long they were not renewed on our own clock, so
    clocks may differ.
    """

    def __init__(
        self, session: kubetls.Session, name: str, identity: str, seconds: int
    ) -> None:
        self._session = session
        self._identity = identity
        self.seconds = seconds
        self._leases = kubetls.path(LEASES, "leases", namespace=session.namespace)
        self._name = name
        self._seen: tuple[object, float] = (None, 0.0)
        self._renewed = float("-inf")

    @property
    def holds(self) -> bool:
        """Whether we may work: the lease was renewed and has not run out."""
        return time.monotonic() - self._renewed < self.seconds * 2 / 3

    def try_once(self) -> None:
        """Renew the lease, or take it when its holder is gone."""
        began = time.monotonic()
        try:
            self._claim_or_create()
        except (_Held, kubetls.Conflict, kubetls.AlreadyExists):
            return
        except kubetls.KubeTLSError as error:
            logger.warning("lease: %s", error)
        else:
            self._renewed = began

    def _claim_or_create(self) -> None:
        try:
            self._session.update(f"{self._leases}/{self._name}", self._claim, 1)
        except kubetls.NotFound:
            body = {"metadata": {"name": self._name}, "spec": self._spec({})}
            self._session.post(self._leases, body)

    def release(self) -> None:
        """Give it up, so that the next leader need not wait."""
        if not self.holds:
            return

        def free(lease: dict[str, Any]) -> None:
            if lease["spec"].get("holderIdentity") != self._identity:
                raise _Held
            lease["spec"]["holderIdentity"] = ""

        with contextlib.suppress(kubetls.KubeTLSError, _Held):
            self._session.update(f"{self._leases}/{self._name}", free)

    def _claim(self, lease: dict[str, Any]) -> None:
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        state = (holder, spec.get("renewTime"))
        if state != self._seen[0]:
            self._seen = (state, time.monotonic())
        expired = time.monotonic() - self._seen[1] > self.seconds
        if holder not in {None, "", self._identity} and not expired:
            raise _Held
        lease["spec"] = self._spec(spec)

    def _spec(self, before: dict[str, Any]) -> dict[str, Any]:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
        now = now.replace("+00:00", "Z")
        ours = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self.seconds,
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (not ours),
        }


class _Held(Exception):
    """Somebody else leads."""


class Controller:
    """Keeps the ConfigMaps of all rosters of a namespace in step with its pods."""

    def __init__(self, session: kubetls.Session, leader: Leader) -> None:
        self._session = session
        self._leader = leader
        self._queue = WorkQueue()
        self._stopping = threading.Event()
        self._failure: kubetls.KubeTLSError | None = None
        namespace = session.namespace
        self._rosters = session.list_watch(
            kubetls.path(GROUP, "rosters", namespace=namespace)
        )
        self._pods = session.list_watch(kubetls.path(CORE, "pods", namespace=namespace))
        self._synced = {"rosters": threading.Event(), "pods": threading.Event()}

    def run(self) -> None:
        """Work until `stop`, or until something cannot be followed, which raises."""
        threads = [
            threading.Thread(target=self._follow, args=["rosters", self._rosters]),
            threading.Thread(target=self._follow, args=["pods", self._pods]),
            threading.Thread(target=self._keep_lease),
        ]
        for thread in threads:
            thread.start()
        try:
            while not self._stopping.is_set():
                self._work()
        finally:
            self.stop()
            for thread in threads:
                thread.join()
            self._leader.release()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End `run`; from any thread or signal handler."""
        self._stopping.set()
        self._rosters.stop()
        self._pods.stop()

    def _work(self) -> None:
        ready = all(event.is_set() for event in self._synced.values())
        if not (ready and self._leader.holds):
            self._stopping.wait(0.2)
            return
        key = self._queue.take(timeout=0.5)
        if key is None:
            return
        try:
            self._reconcile(key)
        except kubetls.KubeTLSError as error:
            logger.warning("%s/%s: %s", *key, error)
            self._queue.failed(key)
        else:
            self._queue.done(key)

    def _reconcile(self, key: Key) -> None:
        roster = self._rosters.objects.get(key)
        if roster is None:
            return
        spec, metadata = roster["spec"], roster["metadata"]
        wanted = spec["labels"].items()
        names = sorted(
            pod["metadata"]["name"]
            for pod in list(self._pods.objects.values())
            if wanted <= (pod["metadata"].get("labels") or {}).items()
            and "deletionTimestamp" not in pod["metadata"]
        )
        owner = {
            "apiVersion": GROUP,
            "kind": "Roster",
            "name": metadata["name"],
            "uid": metadata["uid"],
            "controller": True,
        }
        config_map = {
            "apiVersion": CORE,
            "kind": "ConfigMap",
            "metadata": {"name": spec["configMap"], "ownerReferences": [owner]},
            "data": {"pods": "\n".join(names)},
        }
        self._session.apply(config_map, MANAGER, force=True)
        status = {
            "pods": len(names),
            "observedGeneration": metadata.get("generation", 0),
        }
        if roster.get("status") != status:
            path = kubetls.path(
                GROUP,
                "rosters",
                metadata["name"],
                namespace=metadata["namespace"],
                subresource="status",
            )
            self._session.patch(path, {"status": status})
        logger.info("%s: %d pods", metadata["name"], len(names))

    def _follow(self, what: str, watch: kubetls.ListWatch) -> None:
        try:
            for event in watch:
                if event.type == "SYNCED":
                    self._synced[what].set()
                # A pod may join or leave any roster; the queue takes each key once.
                if what == "pods":
                    for key in list(self._rosters.objects):
                        self._queue.add(key)
                elif event.type in {"ADDED", "MODIFIED"}:
                    metadata = event.object["metadata"]
                    self._queue.add((metadata["namespace"], metadata["name"]))
        except kubetls.KubeTLSError as error:
            logger.warning("%s cannot be followed: %s", what, error)
            self._failure = error
            self.stop()

    def _keep_lease(self) -> None:
        led = False
        while not self._stopping.is_set():
            self._leader.try_once()
            if led != self._leader.holds:
                led = self._leader.holds
                logger.info("leading" if led else "not leading")
                if led:
                    for key in list(self._rosters.objects):
                        self._queue.add(key)
            self._stopping.wait(self._leader.seconds / 5)


def install(session: kubetls.Session) -> None:
    """Create the custom resource's definition and wait until it is served."""
    session.apply(DEFINITION, MANAGER, force=True)
    path = kubetls.path(
        "apiextensions.k8s.io/v1", "customresourcedefinitions", "rosters.example.com"
    )
    session.wait(path, "condition=Established", timeout=30)


def on_signals(stop: Callable[[], None]) -> None:
    """End the program properly on Ctrl-C and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop())


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--namespace", help="default: the session's")
    parser.add_argument(
        "--install", action="store_true", help="create the CRD, and end"
    )
    parser.add_argument("--lease-seconds", type=int, default=15)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    agent = "roster-controller/1.0"
    with kubetls.session(namespace=options.namespace, user_agent=agent) as session:
        if options.install:
            install(session)
            return
        identity = f"{socket.gethostname()}_{uuid.uuid4()}"
        leader = Leader(session, MANAGER, identity, options.lease_seconds)
        controller = Controller(session, leader)
        on_signals(controller.stop)
        try:
            controller.run()
        except kubetls.KubeTLSError:
            # Logged. Whoever starts us again must not take it for an end in order.
            sys.exit(1)


if __name__ == "__main__":
    main()
