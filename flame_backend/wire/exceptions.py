"""Exceptions as data: what the called function raised, told to the caller.

Builtin exceptions of a fixed table and classes in `result_types` come back as
themselves, rebuilt from data without running a constructor, with a `RemoteError` that
holds the runner's traceback as cause. Everything else is a `RemoteError` alone:
exceptions that would steer the parent (SystemExit, KeyboardInterrupt, StopIteration,
this package's own) are never recreated.
"""

from __future__ import annotations

import builtins
import json
import subprocess
import traceback
from typing import TYPE_CHECKING, Any, Final

from flame_backend.errors import MalformedFrame, RemoteError
from flame_backend.wire import rebuilding
from flame_backend.wire.decoding import decode
from flame_backend.wire.text import clean
from flame_backend.wire.values import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flame_backend.wire.small import Encoded

NAME_CHARACTERS: Final = 256
TRACEBACK_CHARACTERS: Final = 64 * 1024
MESSAGE_CHARACTERS: Final = 8 * 1024

NOTE_CHARACTERS: Final = 1024
NOTES: Final = 16
STATE_BYTES: Final = 1024 * 1024
"""Arguments and attributes beyond this stay behind; the text goes without them."""

_TABLE: Final[dict[str, type[Exception]]] = {
    f"builtins.{name}": kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not rebuilding.steers(kind)
    and not issubclass(kind, BaseExceptionGroup)
} | {
    "subprocess.CalledProcessError": subprocess.CalledProcessError,
    "subprocess.TimeoutExpired": subprocess.TimeoutExpired,
    "json.decoder.JSONDecodeError": json.JSONDecodeError,
}


def encode_exception(
    error: BaseException, *, result_types: Sequence[type] = ()
) -> Encoded:
    """Encode an exception; never raises, whatever the exception does."""
    kind = type(error)
    name = _qualified(kind)
    facts: dict[str, Any] = {
        "type": clean(name, NAME_CHARACTERS),
        "message": clean(_text(error), MESSAGE_CHARACTERS),
        "traceback": clean(_formatted(error), TRACEBACK_CHARACTERS),
        "notes": [clean(_text(note), NOTE_CHARACTERS) for note in _notes(error)],
        "args": None,
        "state": None,
        "index": None,
    }
    try:
        return encode(
            facts | _held(error, name, list(result_types)),
            result_types=result_types,
            limit=STATE_BYTES,
            total_limit=STATE_BYTES,
        )
    except BaseException:  # noqa: BLE001 - odd attributes: the text goes without them
        return encode(facts)


def _held(error: BaseException, name: str, kinds: list[type]) -> dict[str, Any]:
    """Return what it takes to rebuild an exception, nothing when it is told as text."""
    kind = type(error)
    if kind in kinds and not rebuilding.steers(kind):
        index = kinds.index(kind)
    elif _TABLE.get(name) is kind:
        index = None
    else:
        return {}
    state = rebuilding.exception_state(error)
    return {"index": index, "args": list(error.args), "state": state}


def decode_exception(
    body: bytes | memoryview,
    segments: Sequence[bytes] = (),
    *,
    result_types: Sequence[type] = (),
) -> Exception:
    """Decode what `encode_exception` made.

    Raises:
        MalformedFrame: The bytes are something else.
    """
    facts = decode(body, segments, result_types=result_types)
    if type(facts) is not dict:
        # Arrays and tables have errors of their own for what is not in them.
        msg = "an exception that is no dict"
        raise MalformedFrame(msg)
    try:
        remote = RemoteError(
            clean(facts["type"], NAME_CHARACTERS),
            clean(facts["message"], MESSAGE_CHARACTERS),
            clean(facts["traceback"], TRACEBACK_CHARACTERS),
        )
        notes = [clean(note, NOTE_CHARACTERS) for note in facts["notes"][:NOTES]]
        kind = _kind_of(facts, result_types)
    except (KeyError, TypeError) as error:
        msg = "an exception with other facts than it has"
        raise MalformedFrame(msg) from error
    rebuilt = remote if kind is None else _rebuilt(kind, facts, remote)
    for note in notes:
        rebuilt.add_note(note)
    return rebuilt


def _kind_of(facts: Any, result_types: Sequence[type]) -> type[Exception] | None:
    if facts["args"] is None:
        return None
    index = facts["index"]
    if index is None:
        return _TABLE.get(facts["type"])
    if type(index) is int and 0 <= index < len(result_types):
        kind = result_types[index]
        return None if rebuilding.steers(kind) else kind
    return None


def _rebuilt(kind: type[Exception], facts: Any, remote: RemoteError) -> Exception:
    try:
        rebuilt = rebuilding.exception(kind, tuple(facts["args"]), facts["state"])
        if facts["index"] is None:
            str(rebuilt)  # arguments of other types would fail when they are shown
    except Exception:  # noqa: BLE001 - data that its class refuses: tell the text
        return remote
    rebuilt.__cause__ = remote
    return rebuilt


def _qualified(kind: type) -> str:
    try:
        return f"{kind.__module__}.{kind.__qualname__}"
    except BaseException:  # noqa: BLE001 - a user's metaclass
        return "(its name could not be read)"


def _text(shown: object) -> str:
    try:
        return str(shown)
    except BaseException:  # noqa: BLE001 - a user's __str__, whatever it raises
        return "(its text could not be made)"


def _notes(error: BaseException) -> list[object]:
    try:
        notes = getattr(error, "__notes__", None)
    except BaseException:  # noqa: BLE001 - a user's __getattribute__
        return []
    return notes[:NOTES] if isinstance(notes, list) else []


def _formatted(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - a user's __str__ or __repr__
        return f"{_qualified(type(error))} (its traceback could not be made)"
