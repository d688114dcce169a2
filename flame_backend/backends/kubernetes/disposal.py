"""Runner pods on their way out: deleted by UID, again and again until they are gone.

An API server that is away for a while must not leave pods behind, nor a POST whose
answer was lost. Nothing here blocks but `close`.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import kubetls
from flame_backend.backends.kubernetes.pace import pause_before

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.backends.kubernetes.pods import Pods

    Step = Callable[[], None]

logger = logging.getLogger("flame_backend.kubernetes")

GONE_SECONDS: Final = 40.0
"""How long close() waits for pods to be gone, above their grace period."""

FORCE_SECONDS: Final = 60.0
"""After its grace period a pod has that long before its node counts as gone.

A pod is an object until its kubelet says that its containers have ended, and the
kubelet of a dead node never does. What may still run there has lost its link, is
admitted by nobody and ends by itself.
"""

POLL_SECONDS: Final = 0.2


@dataclass(slots=True, eq=False)
class Remains:
    """A pod to delete.

    Attributes:
        name: Its name.
        nonce: Of its POST, by which it is found when its UID is not known.
        uid: Its UID; None when the POST was not answered.
        grace: Seconds its container has after SIGTERM.
    """

    name: str
    nonce: str
    uid: str | None
    grace: int = 1


class Disposal:
    """Deletes pods.

    Args:
        pods: The pool's.
        work: Runs a step in some thread that may block.
        later: Runs a step after some seconds, in a thread that may not.
    """

    def __init__(
        self,
        pods: Pods,
        work: Callable[[Step], None],
        later: Callable[[float, Step], None],
    ) -> None:
        self._pods = pods
        self._work = work
        self._later = later
        self._lock = threading.Lock()
        self._left: set[Remains] = set()
        # Names of pods that were told to go and still show, by UID.
        self._asked: dict[str, str] = {}

    def take(self, remains: Remains, keep: float = 0.0) -> None:
        """See to it that a pod goes, after some seconds if it is to be kept."""
        with self._lock:
            self._left.add(remains)
        if keep > 0:
            self._later(keep, lambda: self._start(remains, 1))
        else:
            self._start(remains, 1)

    def knows(self, name: str, uid: str) -> bool:
        """Say whether a pod is to go, or was deleted and still shows for a moment."""
        with self._lock:
            return uid in self._asked or any(
                remains.name == name for remains in self._left
            )

    def gone(self, uid: str) -> None:
        """A pod is no object any more."""
        with self._lock:
            self._asked.pop(uid, None)

    def _start(self, remains: Remains, attempt: int) -> None:
        self._work(lambda: self._try(remains, attempt))

    def _try(self, remains: Remains, attempt: int) -> None:
        with self._lock:
            if remains not in self._left:
                return
        try:
            self._delete(remains)
        except kubetls.KubeTLSError as error:
            logger.warning("runner pod %s is not deleted yet: %s", remains.name, error)
            pause = pause_before(attempt, None, 0.0)
            self._later(pause, lambda: self._start(remains, attempt + 1))

    def _delete(self, remains: Remains) -> None:
        uid = remains.uid or self._pods.find(remains.name, remains.nonce)
        if uid is not None:
            remains.uid = uid
            self._pods.delete(remains.name, uid, remains.grace)
            with self._lock:
                self._asked[uid] = remains.name
            if remains.grace:  # without one its object has gone at once
                self._force_after(remains.grace + FORCE_SECONDS, uid)
        with self._lock:
            self._left.discard(remains)

    def _force_after(self, seconds: float, uid: str) -> None:
        self._later(seconds, lambda: self._work(lambda: self._force(uid)))

    def _force(self, uid: str) -> None:
        """Remove a pod's object without its kubelet's word; in a worker."""
        with self._lock:
            name = self._asked.get(uid)
        if name is None:
            return
        try:
            self._pods.delete(name, uid, 0)
        except kubetls.KubeTLSError as error:
            logger.warning("runner pod %s is not removed yet: %s", name, error)
            self._force_after(FORCE_SECONDS, uid)
        else:
            self.gone(uid)

    def close(self, grace: float) -> None:
        """Delete what is left and wait until no pod of the pool is there."""
        deadline = time.monotonic() + grace + GONE_SECONDS
        there = True
        while there and time.monotonic() < deadline:
            # Silence is no verdict: an API server that is away is asked again.
            with suppress(kubetls.KubeTLSError):
                there = self._delete_all()
            if there:
                time.sleep(POLL_SECONDS)
        if there:
            self._give_up()

    def _give_up(self) -> None:
        """Remove the objects of pods that were told to go and have not."""
        with self._lock:
            asked = list(self._asked)
        for uid in asked:
            self._force(uid)
        logger.warning("runner pods did not end in time: %d were removed", len(asked))

    def _delete_all(self) -> bool:
        """Delete every pod of the pool, known or not; False when there is none."""
        with self._lock:
            left = list(self._left)
        for remains in left:
            self._delete(remains)
        found = self._pods.all()
        with self._lock:
            unasked = found.keys() - self._asked.keys()
        for uid in unasked:
            self._pods.delete(found[uid], uid, 1)
            with self._lock:
                self._asked[uid] = found[uid]
        return bool(found)
