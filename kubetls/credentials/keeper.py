"""Credentials that live: read again in time, the last good ones kept.

The kubelet replaces a token at 80 % of its life and CA bundles whenever they change;
clients are to read about once a minute (as client-go: a period of 60 s less a leeway of
10 s) and to keep what they have if that fails. Reading happens in the thread that needs
it; nothing runs in the background. The clocks are arguments.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from kubetls.errors import KubeTLSError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kubetls.credentials.config import CredentialSource, Generation

REREAD_SECONDS: Final = 50.0
"""How old a reading may be when it is used."""

EXPIRED_SECONDS: Final = 1.0
"""The same once the token has expired by its own word. `exp` never stops a request: a
clock that is wrong would be an outage."""

logger = logging.getLogger("kubetls")


class CredentialKeeper:
    """The current generation of one source; thread-safe.

    Args:
        source: Where generations come from.
        monotonic: Seconds on a clock that is never set.
        now: Seconds since the epoch.

    Raises:
        ConfigError, CredentialError: The first reading fails, which nothing replaces.
    """

    def __init__(
        self,
        source: CredentialSource,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._monotonic = monotonic
        self._now = now
        self._lock = threading.Lock()
        self._reported: str | None = None
        self._generation = source.read()
        self._read_at = monotonic()

    @property
    def generation(self) -> Generation:
        """The last good reading, however old."""
        return self._generation

    def current(self) -> Generation:
        """Return a generation, read again if the last reading is too old.

        While one thread reads, the others go on with what there is.
        """
        if self._due() and self._lock.acquire(blocking=False):
            try:
                if self._due():
                    self._read(fresh=False)
            finally:
                self._lock.release()
        return self._generation

    def renew(self, refused: Generation) -> Generation:
        """Return what replaces a generation that the server, or OpenSSL, refused.

        Reads at once, unless another thread has done so already: many requests that
        are refused together cause one reading.
        """
        with self._lock:
            if self._generation is refused:
                self._read(fresh=True)
            return self._generation

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that is gone."""
        self._lock = threading.Lock()

    def _due(self) -> bool:
        age = self._monotonic() - self._read_at
        if age >= REREAD_SECONDS:
            return True
        token = self._generation.token
        ends = None if token is None else token.expires_at
        return ends is not None and age >= EXPIRED_SECONDS and self._now() >= ends

    def _read(self, *, fresh: bool) -> None:
        # Also when reading fails: a missing file is not asked for on every request.
        self._read_at = self._monotonic()
        try:
            found = self._source.read(fresh=fresh)
        except KubeTLSError as error:
            if str(error) != self._reported:
                self._reported = str(error)
                logger.warning("credentials kept, reading them again failed: %s", error)
            return
        self._reported = None
        if found != self._generation:
            logger.info("credentials read again, and they changed")
            self._generation = found
