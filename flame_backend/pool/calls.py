"""What callers hold: futures, and facts about how a call went."""

from __future__ import annotations

import concurrent.futures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

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


class FlameFuture(concurrent.futures.Future[T], Generic[T]):
    """A future that also knows its call.

    Attributes:
        phase: "queued", "running" or "done".
    """

    def __init__(self) -> None:
        super().__init__()
        self._call: CallInfo | None = None

    @property
    def call(self) -> CallInfo:
        """Facts about the call; complete once it is done."""
        return self._call or CallInfo(id=0)

    @property
    def phase(self) -> str:
        """Where the call is."""
        if self.done():
            return "done"
        return "running" if self.running() else "queued"


class Call:
    """One call inside the pool: what it runs, and what is known so far."""

    __slots__ = (
        "args", "attempt", "boot_s", "function", "id", "kwargs", "lease", "node",
        "queue_timeout", "queued_s", "run_s", "runner", "timed_out", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        queue_timeout: float | None,
    ) -> None:
        self.id = number
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.timeout = timeout
        self.queue_timeout = queue_timeout
        self.attempt = 1
        self.runner = ""
        self.node = ""
        self.lease: Any = None
        self.timed_out = False
        self.queued_s = self.boot_s = self.run_s = 0.0

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
