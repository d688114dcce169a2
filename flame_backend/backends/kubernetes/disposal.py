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
        # Deleting twice is harmless, and a request for nothing.
        self._asked: set[str] = set()

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
            self._asked.add(uid)
        with self._lock:
            self._left.discard(remains)

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
            logger.warning("runner pods may be left; the next start sweeps them")

    def _delete_all(self) -> bool:
        """Delete every pod of the pool, known or not; False when there is none."""
        with self._lock:
            left = list(self._left)
        for remains in left:
            self._delete(remains)
        found = self._pods.all()
        for uid in found.keys() - self._asked:
            self._pods.delete(found[uid], uid, 1)
            self._asked.add(uid)
        return bool(found)
