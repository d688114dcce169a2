"""A backend without processes, for unit tests: calls run in the caller's own thread.

The request is pickled, the function runs, its result or error goes through the data
codec and its limits: what cannot travel fails here with the error it would have had.
What only another process can do is not done: a timeout and progress are told when the
call is over, a call that kills its process kills this one, and `place` is refused.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.base import KILL_GRACE_SECONDS, RunnerInfo, SlotEnd
from flame_backend.errors import AppImportError, LinkClosed
from flame_backend.runner.loading import failure, prepare
from flame_backend.runner.progress import Current, here
from flame_backend.runner.slot import Slot
from flame_backend.wire.frames import Frame, Kind, Limits
from flame_backend.wire.functions import dump_object, load_object
from flame_backend.wire.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flame_backend.backends.base import PoolSpec, Sink
    from flame_backend.wire.link import Buffer
    from flame_backend.wire.small import Encoded

NODE: Final = "this process"


class _Current(threading.local):
    """What a thread runs; a default of the class is found without an exception."""

    depth = 0


_current: Final = _Current()


def calling() -> bool:
    """Tell whether this thread is inside a call that runs inline."""
    return _current.depth > 0


class InlineBackend:
    """Runs calls where they are made; a runner is a name and nothing else."""

    def __init__(self) -> None:
        self._setup: dict[str, Any] = {}
        self._slots = 1

    def open(self, spec: PoolSpec, sink: Sink) -> None:
        """Take over the codec's options."""
        self._sink = sink
        self._slots = spec.slots
        self._app = (spec.preload, spec.on_boot)
        self._setup = {
            "results": spec.results,
            "result_types": spec.result_types,
            "max_payload": spec.max_payload,
            "max_result": spec.max_result,
        }

    def boot(self, runner: str) -> None:
        """Load the app as a runner does; report a runner and its slots, at once."""
        preload, on_boot = self._app
        try:
            prepare(preload, on_boot and load_object(dump_object(on_boot)))
        except Exception as error:  # noqa: BLE001 - the app's import may raise anything
            told = failure(error)
            reason, tail = told["reason"], told["traceback"]
            failed = AppImportError(runner, told["phase"], reason, tail)
            self._sink.boot_failed(runner, failed)
            return
        self._sink.ready(RunnerInfo(runner=runner, node=NODE))
        for slot in range(self._slots):
            self.open_slot(runner, slot)

    def open_slot(self, runner: str, slot: int) -> None:
        """Report a fresh slot."""
        link = InlineLink(self._setup, lambda: self._end_soon(runner, slot))
        self._sink.slot_opened(runner, slot, link)

    def kill_slot(
        self, runner: str, slot: int, grace: float = KILL_GRACE_SECONDS
    ) -> None:
        """Report the slot's end; a call that runs there goes on, and nobody listens."""
        del grace
        self._end_soon(runner, slot)

    def _end_soon(self, runner: str, slot: int) -> None:
        # The pool orders this under its lock, and takes its lock for the report.
        end = SlotEnd(runner, slot, None, signal.SIGTERM)
        threading.Thread(target=self._sink.slot_ended, args=(end,), daemon=True).start()

    def end(self, runner: str, grace: float = 0.0) -> None:
        """Do nothing: there is nothing that could stay."""

    def close(self, grace: float) -> None:
        """Do nothing, as above."""

    def after_fork(self) -> None:
        """Do nothing, as above."""

    def log_tail(self, runner: str, call: int) -> str:
        """Return nothing: what a call prints is printed by this process."""
        del runner, call
        return ""

    def describe(self) -> dict[str, Any]:
        """Return facts for status()."""
        return {"kind": "inline"}


class InlineSlot(Slot):
    """What a runner's process does with a request, without the process."""

    def __init__(self, link: Link, setup: dict[str, Any]) -> None:
        super().__init__(link, setup)
        self._current = Current()

    def answer(self, call_id: int, body: bytes) -> tuple[Kind, Encoded]:
        """Run a call; return what a runner would send, and send its progress.

        Raises:
            KeyboardInterrupt: The user has had enough; that is meant for this program.
        """
        self._reporter.call_id = call_id
        outer, here.current = here.current, self._current
        self._current.begin(self._reporter)
        try:
            return self._answer(body)
        finally:
            self._current.end()
            here.current = outer

    def _failure(self, error: BaseException) -> Encoded:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and isinstance(error, KeyboardInterrupt):
            raise error
        return super()._failure(error)


class InlineLink(Link):
    """A link whose other end is a function: sending a call runs it.

    Args:
        setup: What a runner is told about codecs.
        ended: Reports that the slot is gone.
    """

    def __init__(self, setup: dict[str, Any], ended: Callable[[], None]) -> None:
        self.limits = Limits(0)
        self._slot = InlineSlot(self, setup)
        self._ended = ended
        self._replies: deque[Frame] = deque()
        self._open = True

    def send_parts(self, kind: int, call_id: int, parts: Sequence[bytes]) -> None:
        """Run a call."""
        del kind
        if not self._open:
            raise LinkClosed("the slot has ended")
        self._replies.clear()
        _current.depth += 1
        try:
            answer, encoded = self._slot.answer(call_id, b"".join(parts))
        finally:
            _current.depth -= 1
        self.send(answer, call_id, encoded.body, encoded.segments)

    def send(
        self,
        kind: int,
        call_id: int = 0,
        body: Buffer = b"",
        segments: Sequence[Buffer] = (),
    ) -> None:
        """Keep what the call has to say until it is asked for."""
        parts = [bytes(part) for part in segments]
        self._replies.append(Frame(Kind(kind), call_id, bytes(body), parts))

    def receive_small(self, kind: int) -> None:
        """Leave it to `receive`."""

    def release(self) -> None:
        """Do nothing: there is no buffer."""

    def receive(self) -> Frame:
        """Return what the last call reported, and then its reply."""
        if not self._replies:
            raise LinkClosed("no call has been sent")
        return self._replies.popleft()

    def shutdown(self) -> None:
        """Take no further calls; one that runs cannot be cut."""
        self._open = False

    def close(self) -> None:
        """End the slot."""
        if self._open:
            self._open = False
            self._ended()
