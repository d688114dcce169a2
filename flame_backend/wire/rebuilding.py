"""Objects rebuilt from data: arrays, dataclasses, exceptions, without code of theirs.

An exception's class says what the caller will do with it, so a runner must not choose
one that steers the parent: StopIteration, the executor's, ours. What builtin exceptions
keep outside their arguments is a fixed table with types, since some of it is trusted:
UnicodeError reads memory at `start`, a traceback draws as many carets as a SyntaxError
says.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import types
from functools import lru_cache
from typing import Any, Final

from flame_backend.wire.tags import DTYPE

ARRAY_DIMENSIONS: Final = 32

# ------------------------------------------------------------------ arrays


def array(dtype: object, shape: object, order: object, data: bytes) -> Any:
    """Rebuild an array of plain numbers, writable; its shape fits its bytes exactly.

    Raises:
        TypeError: No array of ours.
        ValueError: Likewise.
    """
    import numpy as np

    kind = _dtype(dtype)
    if type(shape) is not list or len(shape) > ARRAY_DIMENSIONS:
        msg = "no shape"
        raise TypeError(msg)
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        msg = "a shape with other numbers than sizes"
        raise TypeError(msg)
    if order != "C" and order != "F":  # noqa: PLR1714 - it may be unhashable
        msg = "no memory order"
        raise TypeError(msg)
    flat = np.frombuffer(bytearray(data), dtype=kind)
    _check_truths(flat)
    return flat.reshape(shape, order=order)


def scalar(dtype: object, data: object) -> Any:
    """Rebuild a numpy scalar.

    Raises:
        TypeError: No scalar of ours.
        ValueError: Likewise.
    """
    import numpy as np

    if type(data) is not bytes:
        msg = "no bytes"
        raise TypeError(msg)
    if dtype == "|S0" and not data:
        return np.bytes_()
    flat = np.frombuffer(data, dtype=_dtype(dtype))
    _check_truths(flat)
    (value,) = flat
    return value


def _dtype(text: object) -> Any:
    import numpy as np

    if not isinstance(text, str) or not DTYPE.match(text):
        msg = "an array of a kind that is not carried"
        raise TypeError(msg)
    return np.dtype(text)


def _check_truths(flat: Any) -> None:
    # numpy counts on a bool's byte being 0 or 1.
    if flat.dtype.kind == "b" and flat.size and flat.view("u1").max() > 1:
        msg = "a bool that is neither"
        raise ValueError(msg)


# ------------------------------------------------------------------ the app's classes


@lru_cache(maxsize=256)
def field_names(kind: type) -> frozenset[str]:
    """Return the fields of a dataclass that is nothing but its fields.

    Raises:
        TypeError: No such class; says why.
    """
    if not dataclasses.is_dataclass(kind):
        msg = f"{kind.__qualname__} is no dataclass"
        raise TypeError(msg)
    object.__new__(kind)  # a base with a layout of its own (list, Exception) refuses
    names = frozenset(field.name for field in dataclasses.fields(kind))
    for name in names:
        if _runs_code(kind, name):
            msg = f"{kind.__qualname__}.{name} is set by code of its own"
            raise TypeError(msg)
    return names


def is_named_tuple(kind: type) -> bool:
    """Tell whether this is a class that `namedtuple` or `NamedTuple` made."""
    names = getattr(kind, "_fields", None)
    return (
        issubclass(kind, tuple)
        and type(names) is tuple
        and all(type(name) is str for name in names)
    )


def _runs_code(kind: type, name: str) -> bool:
    """Tell whether setting an attribute calls something other than a slot."""
    for base in kind.__mro__:
        if name in vars(base):
            found = vars(base)[name]
            slot = isinstance(found, types.MemberDescriptorType)
            return hasattr(type(found), "__set__") and not slot
    return False


# ------------------------------------------------------------------ exceptions

_STEERING_CLASSES: Final = (StopIteration, StopAsyncIteration)
_STEERING_PACKAGES: Final = {"flame_backend", "concurrent", "asyncio"}

_Facts = dict[str, tuple[type, ...]]

_TEXT: Final = (str, type(None))
_NUMBER: Final = (int, type(None))
_FILE: Final = (str, bytes, int, type(None))
_OUTPUT: Final = (str, bytes, type(None))

_FACTS: Final[dict[type[Exception], _Facts]] = {
    OSError: {"errno": _NUMBER, "strerror": _TEXT, "filename": _FILE,
              "filename2": _FILE},
    ImportError: {"msg": _TEXT, "name": _TEXT, "path": _TEXT},
    SyntaxError: {"msg": _TEXT, "filename": _TEXT, "lineno": _NUMBER,
                  "offset": _NUMBER, "text": _TEXT, "end_lineno": _NUMBER,
                  "end_offset": _NUMBER},
    NameError: {"name": _TEXT},
    AttributeError: {"name": _TEXT},
    subprocess.CalledProcessError: {"returncode": (int,), "output": _OUTPUT,
                                    "stderr": _OUTPUT},
    subprocess.TimeoutExpired: {"timeout": (int, float), "output": _OUTPUT,
                                "stderr": _OUTPUT},
    json.JSONDecodeError: {"msg": (str,), "doc": (str,), "pos": (int,),
                           "lineno": (int,), "colno": (int,)},
}  # fmt: skip
"""What exceptions of the standard library keep beside `args`, and what it may be."""

SYNTAX_NUMBER: Final = 100_000
"""Lines and columns of a SyntaxError."""

_UNICODE: Final[dict[type[Exception], type]] = {
    UnicodeDecodeError: bytes,
    UnicodeEncodeError: str,
    UnicodeTranslateError: str,
}


def steers(kind: type) -> bool:
    """Tell whether raising this class would mean something to the parent itself."""
    return (
        not issubclass(kind, Exception)
        or issubclass(kind, _STEERING_CLASSES)
        or any(
            str(base.__module__).partition(".")[0] in _STEERING_PACKAGES
            for base in kind.__mro__
        )
    )


def exception_state(error: BaseException) -> dict[str, Any]:
    """Return what an exception holds beside its arguments."""
    state = {
        key: item
        for key, item in vars(error).items()
        if type(key) is str and not key.startswith("__")
    }
    for name, kinds in _facts_of(type(error)).items():
        item = getattr(error, name, None)
        if item is not None and type(item) in kinds:
            state[name] = item
    return state


def exception(kind: type[Exception], args: tuple[Any, ...], state: object) -> Exception:
    """Make an exception without calling its constructor, which may want anything.

    Raises:
        TypeError: The facts do not fit the class.
        ValueError: Likewise.
    """
    if type(state) is not dict:
        msg = "no attributes"
        raise TypeError(msg)
    if any(issubclass(kind, unicode) for unicode in _UNICODE):
        value = _unicode_error(kind, args)
    else:
        # The nearest builtin base allocates, so that no __new__ of the class runs.
        base = next(found for found in kind.__mro__ if found.__module__ == "builtins")
        value = base.__new__(kind, *args)
        value.args = args
    facts = _facts_of(kind)
    for name, item in state.items():
        if name in facts:
            _check_fact(kind, name, item, facts[name])
        elif name.startswith("__") or _hides_code(kind, name):
            msg = f"{name} is no attribute of data"
            raise TypeError(msg)
        object.__setattr__(value, name, item)
    return value


def _facts_of(kind: type) -> _Facts:
    for base, facts in _FACTS.items():
        if issubclass(kind, base):
            return facts
    return {}


def _check_fact(kind: type, name: str, item: Any, kinds: tuple[type, ...]) -> None:
    if type(item) not in kinds:
        msg = f"{name} of another type"
        raise TypeError(msg)
    numbered = issubclass(kind, SyntaxError) and type(item) is int
    if numbered and not -1 <= item <= SYNTAX_NUMBER:
        msg = f"{name} of a file longer than one may be"
        raise ValueError(msg)


def _hides_code(kind: type, name: str) -> bool:
    """Tell whether an attribute would replace a method, or run a setter."""
    found = getattr(kind, name, None)
    return callable(found) or hasattr(type(found), "__set__")


def _unicode_error(kind: type[Exception], args: tuple[Any, ...]) -> Exception:
    texts = _UNICODE.get(kind)
    if texts is None or len(args) != (4 if kind is UnicodeTranslateError else 5):
        msg = "not the arguments of a UnicodeError"
        raise TypeError(msg)
    whole, start, end = args[-4:-1]
    if type(whole) is not texts or type(start) is not int or type(end) is not int:
        msg = "not the arguments of a UnicodeError"
        raise TypeError(msg)
    if not 0 <= start <= end <= len(args[-4]):
        msg = "a UnicodeError that points outside its object"
        raise ValueError(msg)
    return kind(*args)
