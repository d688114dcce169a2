"""One watch for all runner pods of a pool: the last known state of each."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

import kubetls

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("flame_backend.monitor")

RETRY_SECONDS: Final = 2.0


class Monitor:
    """Follows pods by label and reports every change.

    Args:
        session: Talks to the API server.
        path: The namespace's pods.
        labels: Selector of this pool's runners.
        changed: Called with name and pod, None for a pod that is gone; from the
            monitor's thread.
    """

    def __init__(
        self,
        session: kubetls.Session,
        path: str,
        labels: str,
        changed: Callable[[str, dict[str, Any] | None], None],
    ) -> None:
        self._session = session
        self._path = path
        self._labels = labels
        self._changed = changed
        self._stopping = threading.Event()
        self._watch: kubetls.ListWatch | None = None
        self._thread = threading.Thread(
            target=self._follow, name="flame-monitor", daemon=True
        )
        self._thread.start()

    def _follow(self) -> None:
        while not self._stopping.is_set():
            self._watch = self._session.list_watch(self._path, labels=self._labels)
            try:
                with self._watch as watch:
                    for event in watch:
                        self._report(event)
            except kubetls.KubeTLSError as error:
                # Silence is no verdict: runners go on, and the watch comes back.
                logger.warning("watching runner pods: %s", error)
                self._stopping.wait(RETRY_SECONDS)

    def _report(self, event: kubetls.Event) -> None:
        if event.type == "SYNCED":
            return
        name = event.object["metadata"]["name"]
        self._changed(name, None if event.type == "DELETED" else event.object)

    def stop(self) -> None:
        """End the watch and its thread."""
        self._stopping.set()
        if self._watch is not None:
            self._watch.stop()
        self._thread.join()
