"""What callers hold: calls, slots in their hands, futures, and facts about a call."""

from __future__ import annotations

import concurrent.futures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from flame_backend.errors import FlameError
    from flame_backend.wire.link import Link

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallInfo:
    """How one call went.

    Attributes:
        id: Number of the call within its pool.
        runner: Name of the runner that ran it, "" when none did.
        node: Node or host of that runner.
        attempt: Tries it took, from 1; only calls that never started are tried again.
        queued_s: Seconds it waited for a slot.
        boot_s: Seconds the boot of its runner took.
        run_s: Seconds from the request to the result.
        log_tail: Last output of the call; empty in this version.
    """

    id: int
    runner: str = ""
    node: str = ""
    attempt: int = 1
    queued_s: float = 0.0
    boot_s: float = 0.0
    run_s: float = 0.0
    log_tail: str = ""


class Lease:
    """A slot, in a caller's hands or idle.

    Attributes:
        runner: Its runner.
        slot: Its number on that runner.
        link: Its connection; used by the holder's thread alone.
        call: The call that holds it, or None.
        end: Why the slot is gone, once that is known.
    """

    __slots__ = ("call", "end", "link", "runner", "slot")

    def __init__(self, runner: str, slot: int, link: Link) -> None:
        self.runner = runner
        self.slot = slot
        self.link = link
        self.call: Call | None = None
        self.end: FlameError | None = None


class Call:
    """One call inside the pool: what it runs, and what is known so far.

    Its fields from `lease` on are written under the lock of `Leases` alone.
    """

    __slots__ = (
        "attempt", "boot_s", "deadline", "error", "future", "id", "lease", "lock",
        "node", "queue_deadline", "queue_timeout", "queued_at", "queued_s", "request",
        "run_s", "runner", "started_at", "timed_out", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        request: list[bytes],
        timeout: float | None,
        queue_timeout: float | None,
    ) -> None:
        self.id = number
        self.request = request
        self.timeout = timeout
        self.queue_timeout = queue_timeout
        self.queue_deadline: float | None = None
        self.queued_at = self.started_at = 0.0
        self.queued_s = self.boot_s = self.run_s = 0.0
        self.attempt = 1
        self.runner = self.node = ""
        self.future: FlameFuture[Any] | None = None
        self.lock: threading.Lock | None = None
        self.lease: Lease | None = None
        self.error: FlameError | None = None
        self.deadline = 0.0
        self.timed_out = False

    def info(self) -> CallInfo:
        """Return the facts."""
        return CallInfo(
            id=self.id,
            runner=self.runner,
            node=self.node,
            attempt=self.attempt,
            queued_s=self.queued_s,
            boot_s=self.boot_s,
            run_s=self.run_s,
        )


class FlameFuture(concurrent.futures.Future[T], Generic[T]):
    """A future that also knows its call."""

    def __init__(self, call: Call, withdraw: Callable[[Call], bool]) -> None:
        super().__init__()
        self._call = call
        self._withdraw = withdraw

    @property
    def call(self) -> CallInfo:
        """Facts about the call; complete once it is done."""
        return self._call.info()

    @property
    def phase(self) -> str:
        """Where the call is: "queued", "running" or "done"."""
        if self.done():
            return "done"
        return "running" if self.running() else "queued"

    def cancel(self) -> bool:
        """Cancel the call if it waits; False when it runs or is done."""
        if not super().cancel():
            return False
        if self._withdraw(self._call):
            # Nobody will take it up any more, so nobody else would tell waiters.
            self.set_running_or_notify_cancel()
        return True
