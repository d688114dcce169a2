"""What callers hold: calls, slots in their hands, and futures."""

from __future__ import annotations

import concurrent.futures
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flame_backend.events import CallInfo

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from flame_backend.errors import FlameError
    from flame_backend.pool.retrying import Retry
    from flame_backend.wire.link import Link

    Progress = Callable[[Any, str | None], object]

T = TypeVar("T")

logger = logging.getLogger("flame_backend.pool")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What holds for each call of a pool, or of a view of it.

    Attributes:
        timeout: Seconds it may run.
        queue_timeout: Seconds it may wait for a slot.
        link: It ends when its caller leaves it while it runs.
        retry: When it is tried again.
    """

    timeout: float | None
    queue_timeout: float | None
    link: bool = True
    retry: Retry | None = None


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

    Its fields from `lease` on are written under the ledger's lock alone.
    """

    __slots__ = (
        "attempt", "boot_s", "deadline", "delayed", "doom", "error", "future", "id",
        "lease", "link", "lock", "node", "queue_deadline", "queue_timeout",
        "queued_at", "queued_s", "request", "retry", "run_s", "runner", "started_at",
        "tail", "timeout", "tries",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        request: list[bytes],
        timeout: float | None = None,
        queue_timeout: float | None = None,
        retry: Retry | None = None,
        *,
        link: bool = True,
        tail: Callable[[str, int], str] | None = None,
    ) -> None:
        self.id = number
        self.request = request
        self.timeout = timeout
        self.queue_timeout = queue_timeout
        self.retry = retry
        self.link = link
        self.tail = tail
        self.queue_deadline: float | None = None
        self.queued_at = self.started_at = 0.0
        self.queued_s = self.boot_s = self.run_s = 0.0
        self.attempt = 1
        self.tries = 0
        self.runner = self.node = ""
        self.future: FlameFuture[Any] | None = None
        self.lock: threading.Lock | None = None
        self.lease: Lease | None = None
        self.error: FlameError | None = None
        self.deadline = 0.0
        # How it ends while its slot is being killed, and whether it waits to be tried.
        self.doom: FlameError | None = None
        self.delayed = False

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
            log_tail="" if self.tail is None else self.tail(self.runner, self.id),
        )


class PlacedCall(Call):
    """The call that a placement is.

    Its fields are written under the ledger's lock.

    Attributes:
        exit_code: How its process ended, as `Placement.exitcode` has it.
        raised: Its target raised.
        stopped: Its owner, or the end of the pool, has asked for its end.
    """

    __slots__ = ("exit_code", "raised", "stopped")

    def __init__(
        self,
        number: int,
        request: list[bytes],
        queue_timeout: float | None,
        tail: Callable[[str, int], str],
    ) -> None:
        super().__init__(number, request, None, queue_timeout, tail=tail)
        self.exit_code: int | None = None
        self.raised = self.stopped = False

    def told(self, error: BaseException | None) -> BaseException | None:
        """Return what its owner hears of: not what comes of being stopped."""
        return None if self.stopped and not self.raised else error


class FlameFuture(concurrent.futures.Future[T], Generic[T]):
    """A future that also knows its call.

    Unlike one of the standard library it can be cancelled while it runs.
    """

    # The base calls a future "running" that can no longer be cancelled. Ours can, so
    # for the base it is pending until it is done, and `running` asks the call.

    def __init__(
        self,
        call: Call,
        withdraw: Callable[[Call], bool],
        abandon: Callable[[Call], bool],
    ) -> None:
        super().__init__()
        self._call = call
        self._withdraw = withdraw
        self._abandon = abandon
        self._progress: list[Progress] = []

    @property
    def call(self) -> CallInfo:
        """Facts about the call; complete once it is done."""
        return self._call.info()

    @property
    def phase(self) -> str:
        """Where the call is: "queued", "running" or "done"."""
        if self.done():
            return "done"
        return "queued" if self._call.lease is None else "running"

    def running(self) -> bool:
        """Tell whether the call has a slot."""
        return self.phase == "running"

    def __repr__(self) -> str:
        text = super().__repr__()
        return text.replace("=pending", "=running") if self.running() else text

    def cancel(self) -> bool:
        """Cancel the call: one that waits is removed, one that runs is killed.

        Returns:
            False when it is done, or runs and was made with link=False.
        """
        end = self._abandon if self._call.link else self._withdraw
        return self._cancelled(end)

    def cancel_waiting(self) -> bool:
        """Cancel the call unless it runs or is done."""
        return self._cancelled(self._withdraw)

    def _cancelled(self, end: Callable[[Call], bool]) -> bool:
        if not end(self._call):
            return self.cancelled()
        super().cancel()
        # Nobody will take it up any more, so nobody else would tell waiters.
        self.set_running_or_notify_cancel()
        return True

    def add_progress_callback(self, callback: Progress) -> None:
        """Have a function called with each value and message the call reports.

        In the thread that reads the call's link; what the function raises is logged.
        """
        self._progress.append(callback)

    def report_progress(self, value: Any, message: str | None) -> None:
        """Pass on what the call reported; for the pool."""
        for callback in list(self._progress):
            try:
                callback(value, message)
            except BaseException:  # the call goes on, whatever it is
                logger.exception("a progress callback raised")
