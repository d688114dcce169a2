"""What happens to runner pods: one watch for all of a process, and their events."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import kubetls
from flame_backend.backends.kubernetes.refusals import INSTANCE
from flame_backend.backends.kubernetes.seen_pod import SeenPod

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    Changed = Callable[[str, dict[str, Any], bool], None]

logger = logging.getLogger("flame_backend.monitor")

RETRY_SECONDS: Final = 2.0
RETRY_MAX_SECONDS: Final = 60.0


class Monitor:
    """Follows pods by label and reports every change to the pool it belongs to.

    Silence is no verdict: while the API server is away nothing is reported, and what
    was missed follows when it is back.

    Args:
        session: Talks to the API server.
        path: The namespace's pods.
        labels: Selector of this process' runners.
    """

    def __init__(self, session: kubetls.Session, path: str, labels: str) -> None:
        self._session = session
        self._path = path
        self._labels = labels
        self._pools: dict[str, Changed] = {}
        # Held while a pool is told, so that none hears anything after it has left;
        # what it does then may make it leave.
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._watch: kubetls.ListWatch | None = None
        self._thread = threading.Thread(
            target=self._follow, name="flame-monitor", daemon=True
        )
        self._thread.start()

    def follow(self, instance: str, changed: Changed) -> None:
        """Report a pool's pods.

        Args:
            instance: The pool object's identity, a label of its pods.
            changed: Called with name, pod, and whether it is gone (the pod is its
                last state then); from the monitor's thread.
        """
        with self._lock:
            self._pools[instance] = changed

    def unfollow(self, instance: str) -> bool:
        """Report no more of a pool; say whether there are others."""
        with self._lock:
            self._pools.pop(instance, None)
            return bool(self._pools)

    def _follow(self) -> None:
        pause = RETRY_SECONDS
        while not self._stopping.is_set():
            self._watch = self._session.list_watch(
                self._path, labels=self._labels, decoder=SeenPod
            )
            if self._stopping.is_set():  # stop() may have come before there was one
                return
            try:
                with self._watch as watch:
                    for event in watch:
                        pause = RETRY_SECONDS
                        self._report(event)
            except kubetls.KubeTLSError as error:
                # What a list_watch does not survive is refusal: rights, credentials.
                logger.warning("watching runner pods: %s", error)
                self._stopping.wait(pause)
                pause = min(RETRY_MAX_SECONDS, 2 * pause)

    def _report(self, event: kubetls.Event) -> None:
        if event.type == "SYNCED":
            return
        try:
            metadata = event.object["metadata"]
            with self._lock:
                changed = self._pools.get(metadata["labels"].get(INSTANCE))
                if changed is not None:
                    changed(metadata["name"], event.object, event.type == "DELETED")
        except Exception:
            # One pod that makes no sense does not end the watch of all others.
            logger.exception("a runner pod's change")

    def stop(self) -> None:
        """End the watch and its thread."""
        self._stopping.set()
        if self._watch is not None:
            self._watch.stop()
        self._thread.join()


class PodEvents:
    """Events of pods, as far as they may be read; an optional right.

    Args:
        session: Talks to the API server.
        namespace: Of the pods.
    """

    def __init__(self, session: kubetls.Session, namespace: str) -> None:
        self._session = session
        self._path = kubetls.path("v1", "events", namespace=namespace)
        self.allowed = True

    def of(self, uids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
        """Return the events of some pods by UID, oldest first.

        One request for all of them: the API server reads every event of the namespace
        for each.
        """
        if not self.allowed or not uids:
            return {}
        fields = "involvedObject.kind=Pod"
        if len(uids) == 1:
            fields = f"involvedObject.uid={next(iter(uids))}"
        found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        try:
            for event in self._session.list(self._path, fields=fields):
                uid = str((event.get("involvedObject") or {}).get("uid"))
                if uid in uids:
                    found[uid].append(event)
        except kubetls.Forbidden as error:
            logger.info("causes are told without events: %s", error.message)
            self.allowed = False
        except kubetls.KubeTLSError as error:
            logger.info("events: %s", error)
            return {}
        return {uid: sorted(events, key=_moment) for uid, events in found.items()}


def _moment(event: dict[str, Any]) -> str:
    """Return when an event was last seen; RFC 3339 in UTC sorts as text."""
    series = event.get("series") or {}
    found = (
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
    )
    return str(found or "")
