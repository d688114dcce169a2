"""What the pools of one process have in common: a session, and one watch of their pods.

A watch costs the API server memory and the process a thread and a connection, so ten
pools have one, told apart by a label of the process and, in it, one of the pool.
"""

from __future__ import annotations

import os
import secrets
import threading
from typing import TYPE_CHECKING, Final

from flame_backend.backends.kubernetes.monitor import Monitor
from flame_backend.backends.kubernetes.own_pod import in_cluster_session
from flame_backend.backends.kubernetes.refusals import PROCESS
from flame_backend.version import VERSION

if TYPE_CHECKING:
    import kubetls
    from flame_backend.backends.kubernetes.monitor import Changed

USER_AGENT: Final = f"flame-backend/{VERSION}"


class Shared:
    """A session and what is watched with it; made by `join`, given back by `leave`.

    Args:
        session: The one to use; None opens an in-cluster one, closed with the last.

    Attributes:
        session: Talks to the API server.
        process: Value of the label that runners bear.
        key: Where it is found, for as long as it is shared.
    """

    def __init__(self, session: kubetls.Session | None) -> None:
        self.key = id(session)
        self.session = session or in_cluster_session(USER_AGENT)
        self.process = secrets.token_hex(8)
        self.users = 0
        self._owned = session is None
        self._monitors: dict[str, Monitor] = {}
        self._lock = threading.Lock()

    def follow(self, path: str, instance: str, changed: Changed) -> None:
        """Report every change of a pool's pods from now on.

        Args:
            path: The namespace's pods.
            instance: The pool object's identity.
            changed: Called in the monitor's thread; must not block.
        """
        with self._lock:
            monitor = self._monitors.get(path)
            if monitor is None:
                selector = f"{PROCESS}={self.process}"
                monitor = Monitor(self.session, path, selector)
                self._monitors[path] = monitor
            monitor.follow(instance, changed)

    def unfollow(self, path: str, instance: str) -> None:
        """Report no more of them; the watch ends with the last pool. Idempotent."""
        with self._lock:
            monitor = self._monitors.get(path)
            if monitor is not None and not monitor.unfollow(instance):
                del self._monitors[path]
                monitor.stop()

    def close(self) -> None:
        """Close the session if it was opened here."""
        if self._owned:
            self.session.close()


_lock = threading.Lock()
_joined: Final[dict[int, Shared]] = {}


def join(session: kubetls.Session | None) -> Shared:
    """Return what pools with this session share, opened for the first of them.

    Raises:
        ConfigurationError: This process is not in a pod.
    """
    with _lock:
        shared = _joined.get(id(session))
        if shared is None:
            shared = _joined[id(session)] = Shared(session)
        shared.users += 1
        return shared


def leave(shared: Shared) -> None:
    """Give back what `join` returned, once."""
    with _lock:
        shared.users -= 1
        if shared.users:
            return
        # In a forked child it is the parent's, and another may be there by now.
        if _joined.get(shared.key) is shared:
            del _joined[shared.key]
    shared.close()


def _forget() -> None:
    """In a forked child nothing is shared yet; the parent's stays the parent's."""
    global _lock  # noqa: PLW0603 - a thread that does not exist here may hold it
    _lock = threading.Lock()
    _joined.clear()


os.register_at_fork(after_in_child=_forget)
