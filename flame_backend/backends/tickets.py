"""One-use tickets: how a slot's own connection says which slot it is.

32 random bytes that travel over the control link, bound to one runner and slot, good
for ten seconds and one use, and looked up by their hash, so that neither a guess nor
the time a lookup takes is worth anything. No I/O; the caller brings the clock.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Match = Callable[[tuple[str, int, float]], bool]

TICKET_SECONDS: Final = 10.0
"""From the order to fork a slot to its first frame; a dial over slow nodes has room."""

TICKET_BYTES: Final = 32


class Tickets:
    """Tickets that were given out and not used yet; usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[bytes, tuple[str, int, float]] = {}

    def issue(self, runner: str, slot: int, now: float) -> bytes:
        """Return a fresh ticket; an earlier one of the same slot is void."""
        ticket = secrets.token_bytes(TICKET_BYTES)
        self.void(runner, slot)
        with self._lock:
            digest = hashlib.sha256(ticket).digest()
            self._open[digest] = (runner, slot, now + TICKET_SECONDS)
        return ticket

    def claim(self, ticket: bytes, now: float) -> tuple[str, int] | None:
        """Return runner and slot of a ticket, once, within its time."""
        with self._lock:
            found = self._open.pop(hashlib.sha256(ticket).digest(), None)
        if found is None or now >= found[2]:
            return None
        return found[0], found[1]

    def void(self, runner: str, slot: int) -> None:
        """Void the ticket of a slot, if it has one."""
        self._take(lambda found: found[:2] == (runner, slot))

    def expire(self, now: float) -> list[tuple[str, int]]:
        """Void tickets that nobody used in time; return whose they were."""
        return self._take(lambda found: now >= found[2])

    def _take(self, match: Match) -> list[tuple[str, int]]:
        # A pool opens a handful of slots within ten seconds: a scan is cheap.
        with self._lock:
            taken = [key for key, found in self._open.items() if match(found)]
            return [self._open.pop(key)[:2] for key in taken]
