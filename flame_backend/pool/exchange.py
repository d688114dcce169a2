"""One call over one link: the request out, the reply in, the outcome decoded.

Runs in the thread that has the lease. What the runner raised is a value here, so that
no exception from outside is taken for a fault of the link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flame_backend.errors import (
    MalformedFrame,
    PayloadTooLarge,
    RemoteError,
    ResultNotSerializable,
)
from flame_backend.wire.decoding import decode
from flame_backend.wire.exceptions import decode_exception
from flame_backend.wire.frames import Kind
from flame_backend.wire.functions import load_object
from flame_backend.wire.text import clean

if TYPE_CHECKING:
    from flame_backend.backends.base import PoolSpec
    from flame_backend.pool.calls import Call
    from flame_backend.wire.frames import Frame
    from flame_backend.wire.link import Link

    Outcome = tuple[Any, BaseException | None]

REFUSED: Final = "refused"
"""Key of an ERROR body that is a refusal of the result (runner/slot.py has it too)."""


def answered(link: Link, call: Call, spec: PoolSpec) -> Outcome:
    """Read and decode the reply to a request that was sent in full.

    Raises:
        LinkError: The link ended before it, or brought something else.
    """
    if spec.results == "data":
        reply = link.receive_small(_RESULT)
        if reply is not None:
            if reply[0] != call.id:
                msg = f"RESULT of call {reply[0]}"
                raise MalformedFrame(msg)
            return decode(reply[1], result_types=spec.result_types), None
    done = outcome(receive(link, call, spec), spec)
    link.release()
    return done


_RESULT: Final = int(Kind.RESULT)


def receive(link: Link, call: Call, spec: PoolSpec) -> Frame:
    """Read the reply to a request that was sent in full.

    What the call reports on the way goes to its future's callbacks.

    Raises:
        LinkError: The link ended before it, or brought something else.
    """
    frame = link.receive()
    while frame.kind is Kind.PROGRESS and frame.call_id == call.id:
        _pass_on(frame, call, spec)
        frame = link.receive()
    if frame.call_id != call.id or frame.kind not in _REPLIES:
        msg = f"{frame.kind.name} of call {frame.call_id}"
        raise MalformedFrame(msg)
    return frame


_REPLIES: Final = frozenset((Kind.RESULT, Kind.ERROR))


def _pass_on(frame: Frame, call: Call, spec: PoolSpec) -> None:
    match decode(frame.body, frame.segments, result_types=spec.result_types):
        case [value, None | str() as message]:
            if call.future is not None:
                text = None if message is None else clean(message, 1024)
                call.future.report_progress(value, text)
        case _:
            msg = "progress that is not a value and a message"
            raise MalformedFrame(msg)


def outcome(frame: Frame, spec: PoolSpec) -> Outcome:
    """Decode a reply into the result, or the exception to raise.

    Raises:
        MalformedFrame: The runner sent what this version does not write.
    """
    if frame.kind is Kind.ERROR:
        return None, _raised(frame, spec)
    if spec.results == "data":
        return decode(frame.body, frame.segments, result_types=spec.result_types), None
    try:
        return load_object(bytes(frame.body)), None
    except Exception as error:  # noqa: BLE001 - the result's own classes run here, as results="pickle" asks for
        return None, error


def _raised(frame: Frame, spec: PoolSpec) -> BaseException:
    segments = list(frame.segments)
    if not segments:
        facts = decode(frame.body, result_types=spec.result_types)
        if isinstance(facts, dict) and REFUSED in facts:
            return _refusal(facts, spec.max_result)
    pickled = segments.pop() if spec.results == "pickle" and segments else b""
    error = decode_exception(frame.body, segments, result_types=spec.result_types)
    if not pickled:
        return error
    try:
        original = load_object(pickled)
    except Exception:  # noqa: BLE001 - as above
        return error
    if not isinstance(original, Exception):
        return error
    original.__cause__ = error if isinstance(error, RemoteError) else error.__cause__
    return original


def _refusal(facts: dict[Any, Any], limit: int) -> BaseException:
    size, text = facts.get("size_bytes"), facts.get("text")
    if facts[REFUSED] == "size" and type(size) is int and size >= 0:
        return PayloadTooLarge("result", size, limit)
    if facts[REFUSED] == "type" and isinstance(text, str):
        return ResultNotSerializable(clean(text, 2048))
    msg = "a refusal with other facts than it has"
    raise MalformedFrame(msg)
