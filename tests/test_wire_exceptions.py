"""What a function raised arrives as itself or as text, and steers nothing."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import json
import pickle
import subprocess
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flame_backend import errors
from flame_backend.errors import CallTimeout, MalformedFrame, RemoteError, RunnerLost
from flame_backend.wire.exceptions import (
    MESSAGE_CHARACTERS,
    NOTES,
    STATE_BYTES,
    TRACEBACK_CHARACTERS,
    decode_exception,
    encode_exception,
)
from flame_backend.wire.values import encode

if TYPE_CHECKING:
    from collections.abc import Callable


class ThumbnailError(Exception):
    """An exception of the app, with a constructor of its own."""

    def __init__(self, path: str, *, size: int) -> None:
        super().__init__(f"{path} at {size}")
        self.path = path
        self.size = size


class Awkward(Exception):
    """Its constructor takes nothing that it was made with, and never ends."""

    def __new__(cls, *args: object) -> Awkward:  # noqa: PYI034 - as old code is
        if args != ("first",):
            raise AssertionError
        return super().__new__(cls, *args)

    def __init__(self, _: str) -> None:
        super().__init__("made", 2)


class Unprintable(Exception):
    """Fails wherever it is looked at."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class Exits(Exception):
    """Ends the program of whoever looks at its arguments."""

    @property
    def args(self) -> Any:  # type: ignore[override]
        raise SystemExit(3)


class Hostile(Exception):
    """Ends it for any attribute."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(3)


class Homeless(Exception):
    """As code that was made without a module has it."""

    __module__ = None  # type: ignore[assignment]


class Unequal(type):
    """Of classes that cannot be compared."""

    def __eq__(cls, other: object) -> bool:
        raise SystemExit(3)

    __hash__ = None  # type: ignore[assignment]


class Incomparable(Exception, metaclass=Unequal):
    """Cannot be looked up among the result types."""


class Lost(RunnerLost):
    """Would be taken for the pool's own loss."""


TYPES = (ThumbnailError, Awkward, Unprintable, Lost, SystemExit, StopIteration)


def crossed(error: BaseException, types: tuple[type, ...] = TYPES) -> Exception:
    """Encode and decode, as if raised on a runner."""

    def run() -> None:
        raise error

    try:
        run()
    except BaseException as raised:
        sent = encode_exception(raised, result_types=types)
    else:
        raise AssertionError
    segments = [bytes(part) for part in sent.segments]
    return decode_exception(sent.body, segments, result_types=types)


def decode_error() -> Exception:
    """Return what json raises."""
    try:
        json.loads("[1,")
    except json.JSONDecodeError as error:
        return error
    raise AssertionError


def unicode_error() -> Exception:
    """Return what decoding raises."""
    try:
        b"ab\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


def missing_attribute() -> Exception:
    """Return what a wrong name raises."""
    try:
        object().nothing  # type: ignore[attr-defined]  # noqa: B018 - raises
    except AttributeError as error:
        return error
    raise AssertionError


THEMSELVES: list[tuple[Exception, tuple[str, ...]]] = [
    (ValueError("a", 2, None), ()),
    (KeyError("k"), ()),
    (ZeroDivisionError(), ()),
    (TimeoutError("late"), ()),
    (FileNotFoundError(2, "No such file", "/x"), ("errno", "strerror", "filename")),
    (PermissionError(13, "Denied", b"/x"), ("errno", "strerror", "filename")),
    (OSError(18, "Cross-device", "/a", None, "/b"), ("errno", "filename2")),
    (OSError("only text"), ("errno",)),
    (ConnectionResetError(104, "reset"), ("errno",)),
    (ModuleNotFoundError("no x", name="x", path="/p"), ("msg", "name", "path")),
    (
        SyntaxError("bad", ("f.py", 3, 7, "x = (", 3, 8)),
        ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
    ),
    (missing_attribute(), ("name",)),
    (unicode_error(), ("encoding", "object", "start", "end", "reason")),
    (UnicodeEncodeError("ascii", "é", 0, 1, "no"), ("object", "start")),
    (UnicodeTranslateError("é", 0, 1, "no"), ("object", "start")),
    (decode_error(), ("msg", "doc", "pos", "lineno", "colno")),
    (
        subprocess.CalledProcessError(3, ["ls", "/x"], b"out", b"err"),
        ("returncode", "cmd", "output", "stdout", "stderr"),
    ),
    (
        subprocess.TimeoutExpired("sleep", 2.5, b"out"),
        ("cmd", "timeout", "output", "stdout", "stderr"),
    ),
    (ThumbnailError("a.png", size=3), ("path", "size")),
    (Awkward("first"), ()),
]


@pytest.mark.parametrize(
    ("error", "attributes"), THEMSELVES, ids=lambda item: type(item).__name__
)
def test_exception_comes_back_as_itself(
    error: Exception, attributes: tuple[str, ...]
) -> None:
    """Class, arguments, text and attributes; the remote traceback is its cause."""
    found = crossed(error)
    assert type(error) is type(found)
    assert (error.args, str(error)) == (found.args, str(found))
    for name in attributes:
        assert getattr(error, name) == getattr(found, name), name
    assert isinstance(found.__cause__, RemoteError)
    assert "in run" in found.__cause__.traceback_text


def test_remote_error_tells_the_whole_story() -> None:
    """Traceback, cause and notes are in what the caller's program prints."""
    error = ValueError("outer")
    error.__cause__ = KeyError("inner")
    error.add_note("while testing")
    found = crossed(error)
    shown = "".join(traceback.format_exception(found))
    assert ["while testing"] == found.__notes__
    for text in ("KeyError: 'inner'", "direct cause", "in run", "while testing"):
        assert text in shown
    again = pickle.loads(pickle.dumps(found.__cause__))
    assert str(found.__cause__) == str(again)


@pytest.mark.parametrize("kind", [Exits, Hostile, Incomparable])
def test_exception_that_attacks_who_looks_at_it_is_text(kind: type[Exception]) -> None:
    """The slot that tells of it lives on."""
    found = crossed(kind("x"), (*TYPES, Exits, Hostile))
    assert type(found) is RemoteError
    assert kind.__qualname__ in found.type_name


def test_exception_without_a_module_comes_back() -> None:
    """When it is registered, as any."""
    assert type(crossed(Homeless("x"), (Homeless,))) is Homeless


STEERING: list[BaseException] = [
    SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(1),
    StopAsyncIteration(), asyncio.CancelledError(), concurrent.futures.CancelledError(),
    concurrent.futures.BrokenExecutor(), Lost("r", "Crashed", "x", started=False),
    RunnerLost("r", "Crashed", "x", started=False), CallTimeout("queue", 1.0),
    errors.PoolClosed("x"), ExceptionGroup("several", [ValueError(1)]),
    Unprintable(), type("Local", (Exception,), {})("unknown here"),
]  # fmt: skip


@pytest.mark.parametrize("error", STEERING, ids=lambda error: type(error).__name__)
def test_exception_that_would_steer_the_parent_is_text(error: BaseException) -> None:
    """Its name is told, its class is not used, registered or not."""
    found = crossed(error, (*TYPES, type(error)) if type(error) is Lost else TYPES)
    if type(error) is Unprintable:
        assert isinstance(found.__cause__, RemoteError)
        return
    assert type(found) is RemoteError
    assert type(error).__qualname__ in found.type_name


def facts(**changed: object) -> bytes:
    """Return the body of an exception as a hostile runner would send it."""
    told: dict[str, object] = {
        "type": "builtins.ValueError", "message": "m", "traceback": "t", "notes": [],
        "args": [], "state": {}, "index": None,
    }  # fmt: skip
    return encode(told | changed).body


@pytest.mark.parametrize(
    "name",
    ["SystemExit", "KeyboardInterrupt", "StopIteration", "GeneratorExit",
     "StopAsyncIteration", "BaseException", "ExceptionGroup", "object", "eval", "?"],
)  # fmt: skip
def test_name_outside_the_table_is_only_a_name(name: str) -> None:
    """Whatever the runner calls it."""
    found = decode_exception(facts(type=f"builtins.{name}"))
    assert type(found) is RemoteError


@pytest.mark.parametrize("index", [0, 1, 2, 7, -1, True, "0"])
def test_index_of_a_steering_class_is_only_text(index: object) -> None:
    """Also when the app named such a class in result_types."""
    kinds = (SystemExit, StopIteration, RunnerLost)
    found = decode_exception(facts(index=index), result_types=kinds)
    assert type(found) is RemoteError


LIES: dict[str, dict[str, Any]] = {
    "UnicodeDecodeError": {"args": ["utf-8", b"x", 2**40, 2**41, "r"]},
    "UnicodeEncodeError": {"args": ["utf-8", b"x", 0, 1, "r"]},
    "OSError": {"state": {"errno": "2"}},
    "SyntaxError": {"state": {"lineno": 1, "offset": 1, "end_offset": 2**60}},
    "ImportError": {"state": {"name": 7}},
    "ValueError": {"state": {"__class__": 1}},
    "KeyError": {"state": {"add_note": 1}},
    "TypeError": {"state": {"args": 1}},
    "RuntimeError": {"state": [1]},
    "LookupError": {"args": 7},
}


@pytest.mark.parametrize("kind", LIES)
def test_facts_that_a_class_does_not_have_are_not_set(kind: str) -> None:
    """Some are read by C code; the exception is told as text then."""
    found = decode_exception(facts(type=f"builtins.{kind}", **LIES[kind]))
    assert type(found) is RemoteError
    "".join(traceback.format_exception(found))


def test_arguments_that_cannot_be_shown_are_not_kept() -> None:
    """The text of a CalledProcessError compares its return code."""
    state = {"returncode": 1, "cmd": "x", "output": 3, "stderr": None}
    kind = "subprocess.CalledProcessError"
    assert type(decode_exception(facts(type=kind, state=state))) is RemoteError
    assert type(decode_exception(facts(type=kind))) is RemoteError


@pytest.mark.parametrize(
    "changed",
    [{"type": 1}, {"message": b"x"}, {"traceback": None}, {"notes": 3},
     {"notes": [b"x"]}],
    ids=str,
)  # fmt: skip
def test_other_facts_than_an_exception_has_are_malformed(changed: Any) -> None:
    """The link is not to be trusted then."""
    with pytest.raises(MalformedFrame):
        decode_exception(facts(**changed))
    with pytest.raises(MalformedFrame):
        decode_exception(encode([1]).body)


@pytest.mark.parametrize("encoded", [True, False], ids=["ours", "hostile"])
def test_remote_text_is_escaped_and_bounded(encoded: bool) -> None:
    """On the way out and, as a runner may be hostile, on the way in."""
    text = "\x1b[2Jé\x07\u202e" + "x" * 100_000
    if encoded:
        raised = type("K\x1b", (Exception,), {})(text)
        raised.__notes__ = [text] * 100
        found: Any = crossed(raised)
    else:
        notes = [text] * 100
        found = decode_exception(
            facts(type="K\x1b", message=text, traceback=text, notes=notes)
        )
    assert type(found) is RemoteError
    shown = [found.type_name, found.message, found.traceback_text, *found.__notes__]
    for part in shown:
        assert not {"\x1b", "\x07", "\u202e"} & set(part)
    assert r"\x1b[2Jé" in found.message
    assert NOTES == len(found.__notes__)
    # An escaped character is written with up to eight.
    assert MESSAGE_CHARACTERS + 64 >= len(found.message)
    assert TRACEBACK_CHARACTERS + 1024 >= len(found.traceback_text)


def raising(what: BaseException) -> Callable[..., Any]:
    """Return a method that raises."""

    def method(*_: object) -> Any:
        raise what

    return method


@pytest.mark.parametrize("name", ["__str__", "__repr__", "__getattribute__"])
@pytest.mark.parametrize("what", [ValueError(), RecursionError()], ids=repr)
def test_exception_that_fails_to_be_told_is_told(name: str, what: Exception) -> None:
    """Encoding never raises because of what it encodes."""
    kind = type("Odd", (Exception,), {name: raising(what)})
    assert "Odd" in str(crossed(kind("x")))


def test_attributes_that_cannot_travel_leave_the_text() -> None:
    """The class is told by name, the traceback stays."""
    error = ThumbnailError("a", size=1)
    error.path = open  # type: ignore[assignment]
    found = crossed(error)
    assert type(found) is RemoteError
    assert "ThumbnailError" in found.type_name


@pytest.mark.parametrize("size", [70_000, 2 * STATE_BYTES])
@pytest.mark.parametrize("kind", [bytes, "x".__mul__], ids=["bytes", "text"])
def test_arguments_beyond_a_mebibyte_leave_the_text(
    size: int, kind: Callable[[int], object]
) -> None:
    """In the body or beside it; the frame of an error stays small."""
    found = crossed(ValueError(kind(size)))
    assert (ValueError if size < STATE_BYTES else RemoteError) is type(found)


def test_every_builtin_exception_without_control_is_in_the_table() -> None:
    """A new Python's too; made as the language makes them."""
    for name, kind in vars(builtins).items():
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            continue
        if issubclass(kind, StopIteration | StopAsyncIteration | ExceptionGroup):
            continue
        if issubclass(kind, UnicodeError) and kind is not UnicodeError:
            continue
        assert type(crossed(kind("x"))) is kind, name


@pytest.mark.parametrize("facts", [np.zeros(3), [1], "text", None, 7])
def test_error_that_is_no_dict_is_refused(facts: Any) -> None:
    """An array answers a name with an error of its own."""
    with pytest.raises(MalformedFrame):
        decode_exception(encode(facts).body)
