"""A slot: one process, one link, one call at a time, call after call.

Forked from the zygote with the app loaded. The link opens with the slot's one-use
ticket. User code may raise, exit, print and fork as it likes; whatever it does ends in
one RESULT or ERROR frame, or in the end of this process, which the zygote reports.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import select
import socket
import sys
from contextlib import suppress

from flame_backend.errors import (
    LinkError,
    NotSerializable,
    PayloadTooLarge,
    ResultNotSerializable,
)
from flame_backend.runner.output import running
from flame_backend.runner.processes import end_below
from flame_backend.runner.progress import current
from flame_backend.runner.renewal import Renewal
from flame_backend.wire.frames import Kind, Limits
from flame_backend.wire.functions import dump_object, load_object
from flame_backend.wire.link import Link
from flame_backend.wire.small import Encoded, small_body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from flame_backend.runner.fresh import Origin
    from flame_backend.runner.parent import Parent
    from flame_backend.runner.stamps import Stamps
    from flame_backend.wire.link import Body

EXIT_OK: Final = 0
EXIT_BROKEN: Final = 70
EXIT_LINK: Final = 74

# A member of an enum costs a look-up in its class each time it is named.
_CALL: Final = Kind.CALL
_RESULT: Final = Kind.RESULT
_ERROR: Final = Kind.ERROR

_CODEC: Final = "flame_backend.wire.exceptions"

INITIALIZER: Final = 0
"""Id of the call that prepares a slot; the pool's calls count from 1."""

CODEC_WAIT_MS: Final = 5
CODEC_CALLS: Final = 50
"""A slot that was forked before the codec was there loads it when no call comes for so
long, and after so many calls in any case."""

PROGRESS_BYTES: Final = 64 * 1024
"""A report is a number or a line, not a result."""

REFUSED: Final = "refused"
"""Key of an ERROR body that is this package's own refusal of a result."""


def run_slot(
    origin: Origin,
    setup: dict[str, Any],
    facts: dict[str, Any],
    descriptor: int,
    stamps: Stamps,
) -> int:
    """Serve calls until the parent closes the link; return the exit code."""
    prepare()
    try:
        link = Link(connected(origin.parent, descriptor), Limits(setup["max_payload"]))
        link.send(Kind.TICKET, 0, bytes.fromhex(facts["ticket"]))
    except (OSError, LinkError) as error:
        print(f"flame_backend.runner: no link to the parent: {error}", file=sys.stderr)
        return EXIT_LINK
    keep_from_forks(link)
    return Slot(link, setup, renewal(origin, stamps, link)).serve()


def renewal(origin: Origin, stamps: Stamps, link: Link) -> Renewal | None:
    """Watch over changed modules, where a link can be handed to another program."""
    return Renewal(origin, stamps, link) if origin.parent.transport == "fd" else None


def keep_from_forks(link: Link) -> None:
    """Close a link's copy in every process that a call forks.

    It would keep the link open, and over TLS write under the same keys.
    """
    os.register_at_fork(after_in_child=link.close)


def prepare() -> None:
    """Set up what every slot has, whichever way it starts."""
    with suppress(Exception):
        # Without standard error there is nowhere to tell.
        faulthandler.enable()
    _close_stdin()


def connected(parent: Parent, descriptor: int) -> socket.socket:
    """Return a slot's socket: its descriptor's, or one that is dialled."""
    if parent.transport == "tls":
        from flame_backend.runner.dial import dial

        return dial(parent)
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(True)
    return sock


def _close_stdin() -> None:
    """What user code reads is the end of the file, never another call's input."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


class Slot:
    """The loop of one slot."""

    def __init__(
        self, link: Link, setup: dict[str, Any], renewal: Renewal | None = None
    ) -> None:
        self._link = link
        self.renewal = renewal
        self._result_types = setup["result_types"]
        self._pickles = setup["results"] == "pickle"
        self._limit = setup["max_result"]
        # What the parent's end of the link takes, segments included.
        self._total_limit = max(setup["max_payload"], setup["max_result"])
        self._pid = os.getpid()
        self._reporter = _Reporter(link, self._result_types)

    def serve(self) -> int:
        """Take calls until the link ends."""
        link = self._link
        calls = CODEC_CALLS if codec_is_loaded() else 0
        try:
            while True:
                small = link.receive_small(_CALL)
                if small is not None:
                    self._serve_call(*small)
                    if calls < CODEC_CALLS:
                        calls = self._mind_codec(calls)
                    continue
                kind, call_id, body = link.receive_call()
                if kind is not _CALL:
                    return EXIT_LINK
                self._serve_call(call_id, body)
        except LinkError:
            return EXIT_OK
        finally:
            link.close()
            # Programs that calls left behind end with their slot.
            end_below(os.getpid())

    def _mind_codec(self, calls: int) -> int:
        """Load the codec between two calls; return how many have gone without."""
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        if calls + 1 < CODEC_CALLS and poll.poll(CODEC_WAIT_MS):
            return calls + 1
        load_codec()
        return CODEC_CALLS

    def resume(self, initializer: bytes | None, call_id: int, body: bytes) -> int:
        """Serve a call that this process was replaced for, and then any other."""
        if initializer is not None:
            answer, encoded = self._answer(initializer)
            if answer is _ERROR:
                self._link.send(answer, call_id, encoded.body, encoded.segments)
                return EXIT_BROKEN
            if self.renewal is not None:
                self.renewal.initializer = initializer
        try:
            self._serve_call(call_id, body)
        except LinkError:
            return EXIT_OK
        return self.serve()

    def _serve_call(self, call_id: int, body: Any) -> None:
        link = self._link
        if call_id == INITIALIZER and self.renewal is not None:
            body = body if type(body) is bytes else body.read()
            self.renewal.initializer = body
        running.begin(call_id)
        self._reporter.call_id = call_id
        current.begin(self._reporter)
        answer, encoded = self._answer(body)
        current.end()
        if os.getpid() != self._pid:
            # User code forked and came back in both; the link is the other's.
            os._exit(EXIT_OK)
        link.send(answer, call_id, encoded.body, encoded.segments)
        flush_output()
        running.end()

    def _answer(self, body: Any) -> tuple[Kind, Encoded]:
        """Run one call and encode its outcome."""
        try:
            call = load_object(body) if type(body) is bytes else _read(body)
            function, args, kwargs = call
        except LinkError:
            raise
        except BaseException as error:  # noqa: BLE001 - what user classes raise while they load
            if self.renewal is not None:
                self.renewal.mind_failure(self._reporter.call_id, body)
            return _ERROR, self._failure(error)
        if self.renewal is not None:
            self.renewal.mind(self._reporter.call_id, body, call)
        try:
            value = function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - the one catch-all, around the user's function
            return _ERROR, self._failure(error)
        # Not in the frame above: arguments may be large, and are done with.
        del function, args, kwargs, call, body
        try:
            return _RESULT, self._encoded(value)
        except (ResultNotSerializable, PayloadTooLarge) as error:
            return _ERROR, _refusal(error)
        except BaseException as error:  # noqa: BLE001 - what user classes raise while they are encoded
            return _ERROR, self._failure(error)

    def _encoded(self, value: object) -> Encoded:
        if self._pickles:
            return self._pickled(value)
        packed = small_body(value)
        if packed is not None and len(packed) <= self._limit:
            return Encoded(packed, [])
        from flame_backend.wire.values import encode

        return encode(
            value,
            result_types=self._result_types,
            limit=self._limit,
            total_limit=self._total_limit,
        )

    def _pickled(self, value: object) -> Encoded:
        try:
            body = dump_object(value)
        except NotSerializable as error:
            msg = f"the result cannot be pickled ({error.__cause__}); return plain data"
            raise ResultNotSerializable(msg) from error
        if len(body) > self._limit:
            raise PayloadTooLarge("result", len(body), self._limit)
        return Encoded(body, [])

    def _failure(self, error: BaseException) -> Encoded:
        if isinstance(error, MemoryError):
            # What used it up hangs on the frames, and telling needs some.
            _clear_frames(error)
        try:
            from flame_backend.wire.exceptions import encode_exception
        except (ImportError, OSError, MemoryError):
            # The call has used up what a first import needs: memory, descriptors.
            _clear_frames(error)
            from flame_backend.wire.exceptions import encode_exception
        encoded = encode_exception(error, result_types=self._result_types)
        if self._pickles:
            encoded.segments.append(_pickled(error))
        return encoded


class _Reporter:
    """The way of a call's progress."""

    __slots__ = ("_link", "_result_types", "call_id")

    def __init__(self, link: Link, result_types: tuple[type, ...]) -> None:
        self._link = link
        self._result_types = result_types
        self.call_id = 0

    def encode(self, value: Any, message: str | None) -> Encoded:
        from flame_backend.wire.values import encode

        return encode(
            [value, message],
            result_types=self._result_types,
            limit=PROGRESS_BYTES,
            total_limit=PROGRESS_BYTES,
        )

    def send(self, report: Encoded) -> None:
        with suppress(LinkError):  # the reply will find out as well
            self._link.send(Kind.PROGRESS, self.call_id, report.body, report.segments)


def _clear_frames(error: BaseException) -> None:
    """Let go of what the frames of a call hold."""
    import traceback

    traceback.clear_frames(error.__traceback__)


def codec_is_loaded() -> bool:
    """Tell whether this process has loaded all that results and errors may need."""
    return _CODEC in sys.modules


def load_codec() -> None:
    """Load it: some thirty modules, which a first simple result can do without."""
    importlib.import_module(_CODEC)


def _read(body: Body) -> Any:
    """Unpickle a large call from the link, and leave nothing of it there."""
    try:
        return load_object(body)
    finally:
        body.finish()


def _refusal(error: ResultNotSerializable | PayloadTooLarge) -> Encoded:
    """Tell our own refusal of a result; the parent makes the error itself."""
    from flame_backend.wire.values import encode

    if isinstance(error, PayloadTooLarge):
        return encode({REFUSED: "size", "size_bytes": error.size_bytes})
    return encode({REFUSED: "type", "text": str(error)[:2048]})


def _pickled(error: BaseException) -> bytes:
    """Pickle an exception and prove that it comes back; b"" when it does not."""
    if not isinstance(error, Exception):
        return b""
    try:
        body = dump_object(error)
        load_object(body)
    except BaseException:  # noqa: BLE001 - exceptions with odd constructors
        return b""
    return body


def flush_output() -> None:
    """Prints appear when their call ends, not when a buffer is full."""
    # User code may have replaced them by anything, None included.
    try:  # noqa: SIM105 - suppress() costs more than the flush
        sys.stdout.flush()
    except Exception:  # noqa: BLE001, S110 - there is nowhere to tell
        pass
    try:  # noqa: SIM105 - as above
        sys.stderr.flush()
    except Exception:  # noqa: BLE001, S110 - as above
        pass
