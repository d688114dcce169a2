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
from flame_backend.wire.decoding import decode, rebuilt_exception
from flame_backend.wire.text import clean
from flame_backend.wire.values import Encoded, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

TRACEBACK_CHARACTERS: Final = 64 * 1024
MESSAGE_CHARACTERS: Final = 8 * 1024

_STEERING: Final = (StopIteration, StopAsyncIteration)

_TABLE: Final[dict[str, type[Exception]]] = {
    f"builtins.{name}": kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, _STEERING)
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
    name = _qualified(type(error))
    text = "".join(_formatted(error))
    facts: dict[str, Any] = {
        "type": name,
        "message": clean(_message(error), MESSAGE_CHARACTERS),
        "traceback": clean(text, TRACEBACK_CHARACTERS),
        "notes": [clean(str(note), 1024) for note in _notes(error)[:16]],
        "args": None,
        "state": None,
        "index": None,
    }
    plain = encode(facts)
    kinds = list(result_types)
    if type(error) in kinds:
        facts["index"] = kinds.index(type(error))
    elif name not in _TABLE or type(error) is not _TABLE[name]:
        return plain
    try:
        state = {key: item for key, item in vars(error).items() if key[:2] != "__"}
        facts |= {"args": list(error.args), "state": state}
        if isinstance(error, OSError) and error.filename is not None:
            # OSError keeps errno and strerror in args and the rest in slots.
            names = [error.errno, error.strerror, error.filename]
            facts["args"] = names
        return encode(facts, result_types=result_types, limit=1024 * 1024)
    except Exception:  # noqa: BLE001 - odd attributes: the text goes without them
        return plain


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
    try:
        remote = RemoteError(
            clean(facts["type"], 256),
            clean(facts["message"], MESSAGE_CHARACTERS),
            clean(facts["traceback"], TRACEBACK_CHARACTERS),
        )
        kind = _kind_of(facts, result_types)
        notes = [clean(note, 1024) for note in facts["notes"]]
    except (KeyError, TypeError, AttributeError) as error:
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
        if issubclass(kind, Exception):
            return kind
    return None


def _rebuilt(kind: type[Exception], facts: Any, remote: RemoteError) -> Exception:
    try:
        args = tuple(facts["args"])
        if issubclass(kind, OSError | UnicodeError) and facts["index"] is None:
            rebuilt: Exception = kind(*args)
        else:
            rebuilt = rebuilt_exception(kind, args, dict(facts["state"] or {}))
    except Exception:  # noqa: BLE001 - a class of the app refused its data: tell the text
        return remote
    rebuilt.__cause__ = remote
    return rebuilt


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's __str__
        return "(its text could not be made)"


def _notes(error: BaseException) -> list[object]:
    notes = getattr(error, "__notes__", None)
    return notes if isinstance(notes, list) else []


def _formatted(error: BaseException) -> list[str]:
    try:
        return traceback.format_exception(error)
    except Exception:  # noqa: BLE001 - a user's __str__ or __repr__
        return [f"{_qualified(type(error))} (its traceback could not be made)"]
