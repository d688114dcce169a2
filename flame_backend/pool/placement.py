"""What the owner of a placement holds."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.events import CallInfo
    from flame_backend.pool.calls import FlameFuture, PlacedCall

LOOK_SECONDS: Final = 1.0
"""One that goes from one slot to another while it is stopped is asked again."""


class Placement:
    """A long-lived process on a runner; made by `Pool.place`.

    It holds one slot of its runner until it ends: when its target returns or raises,
    when it is stopped, when its runner is lost, or with its pool. Nothing restarts it.

    Example:
        server = pool.place(serve, "/models/large")
        ...
        server.stop(timeout=10)
    """

    def __init__(
        self,
        call: PlacedCall,
        future: FlameFuture[Any],
        stop: Callable[[PlacedCall, float], None],
        owner: object,
    ) -> None:
        self._call = call
        self._future = future
        self._stop = stop
        # A pool that nobody holds is shut down, and its placements with it.
        self._owner = owner

    @property
    def alive(self) -> bool:
        """It has not ended; it may still wait for its runner (see `phase`)."""
        return not self._future.done()

    @property
    def phase(self) -> str:
        """Where it is: "queued", "running" or "done"."""
        return self._future.phase

    @property
    def exitcode(self) -> int | None:
        """How its process ended, as `multiprocessing.Process.exitcode`.

        0 when the target returned, 1 when it raised, its code when it called
        `sys.exit`, -N when signal N ended it. None while it lives, when it never
        began, and when its runner was lost with it.
        """
        return self._call.exit_code if self._future.done() else None

    @property
    def call(self) -> CallInfo:
        """Its runner and node, how long it waited and has run, its last output."""
        return self._future.call

    def stop(self, timeout: float = 10.0) -> None:
        """End it: SIGTERM now, SIGKILL after `timeout` seconds; wait until it is gone.

        One that waits for its runner does not begin. Its end by `stop` is no failure:
        `join` returns, and `exitcode` says how it went.
        """
        deadline = time.monotonic() + timeout
        while not self._future.done():
            self._stop(self._call, max(0.0, deadline - time.monotonic()))
            concurrent.futures.wait([self._future], LOOK_SECONDS)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended.

        Returns:
            False when it lives on after `timeout` seconds.

        Raises:
            Exception: What its target raised, as of a call.
            CallCrashed: A signal or `sys.exit` with a code ended its process.
            RunnerLost: Its runner is gone.
            BootError, CallTimeout, PoolClosed: It never began.
            CallCancelled: The end of the pool left it no time.
        """
        if timeout is not None:
            # Longer ones mean for ever, as for `stop`.
            timeout = min(timeout, threading.TIMEOUT_MAX)
        done, _ = concurrent.futures.wait([self._future], timeout)
        if not done:
            return False
        self._future.result()
        return True

    def __repr__(self) -> str:
        code = self.exitcode
        end = "" if code is None else f" exitcode={code}"
        where = self._call.runner or "no runner yet"
        return f"<Placement {self._call.id} on {where}: {self.phase}{end}>"
