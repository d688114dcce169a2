"""The globals of the parent's main script, kept in each process of a runner.

Functions of an importable module find its globals where they left them. Those of
`__main__` travel by value, and cloudpickle gives what it unpickles fresh globals each
time, so that a model which an initializer loaded would be gone with the next call.
Here they share one dict for each process, as they do under multiprocessing: what a
call or an initializer sets, later calls find.

A name that the parent sends again is set again only if the parent changed it, so that a
notebook may redefine a function or a constant between two calls.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable

_GLOBALS: Final = "__globals__"
"""Where cloudpickle's state of a function keeps the globals that it names."""

_CODE: Final = (FunctionType, type, ModuleType)

_BASE: Final[tuple[str, ...]] = ("__name__", "__package__", "__file__")


class Pickler(cloudpickle.Pickler):  # type: ignore[misc,name-defined,unused-ignore]
    """cloudpickle's, for which the main script's globals are one thing.

    Args:
        file: Takes the pickle.
        protocol: The pickle protocol.
    """

    def __init__(self, file: Any, protocol: int) -> None:
        super().__init__(file, protocol)
        self._main = sys.modules["__main__"].__dict__
        base = {name: self._main[name] for name in _BASE if name in self._main}
        # Functions that share their globals here share them there; cloudpickle asks
        # this table what to share.
        self.globals_ref[id(self._main)] = _MainGlobals(base)

    def reducer_override(self, obj: Any) -> Any:
        """Have a main script's function join the globals that are there already."""
        reduced = super().reducer_override(obj)
        if (
            type(obj) is FunctionType
            and obj.__globals__ is self._main
            and type(reduced) is tuple
        ):
            make, args, state, items, pairs, set_state = reduced
            return make, args, state, items, pairs, _Joining(set_state)
        return reduced


class _MainGlobals(dict[str, Any]):
    """Stands for the main script's globals in a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _kept_globals, (dict(self),)


class _Joining:
    """Sets the state of an unpickled function, but keeps the globals that it finds."""

    def __init__(self, set_state: Callable[[Any, Any], None]) -> None:
        self._set_state = set_state

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._set_state,)

    def __call__(self, function: FunctionType, state: Any) -> None:
        attributes, slots = state
        news = _kept.news(slots[_GLOBALS])
        self._set_state(function, (attributes, {**slots, _GLOBALS: news}))


class _Kept:
    """One process' globals of the parent's main script."""

    def __init__(self) -> None:
        self.globals: dict[str, Any] = {}
        self._sent: dict[str, object] = {}

    def news(self, sent: dict[str, Any]) -> dict[str, Any]:
        """Return those of the names sent that are to be set.

        They are the new ones, and those the parent changed since it sent them last.
        """
        news = {}
        for name, value in sent.items():
            mark = _mark(value)
            if mark is None:
                # Code is made anew by each unpickling and can't be compared: it
                # replaces what was sent before it, and nothing that was set here.
                last = self._sent.get(name)
                if name not in self.globals or self.globals[name] is last:
                    news[name] = self._sent[name] = value
            elif name not in self.globals or self._sent.get(name) != mark:
                news[name] = value
                self._sent[name] = mark
        return news


def _mark(value: object) -> bytes | None:
    """Return what tells a value from another; None for code and what can't tell."""
    if isinstance(value, _CODE):
        return None
    seen = io.BytesIO()
    try:
        _Marker(seen, 5).dump(value)
    except Exception:  # noqa: BLE001 - whatever a user's __reduce__ raises
        return None
    return hashlib.blake2b(seen.getbuffer(), digest_size=16).digest()


class _Marker(pickle.Pickler):
    """Writes a value's state, and only the names of its classes and functions.

    Those of the main script can't be found by name here, nor are they the state.
    """

    def persistent_id(self, obj: Any) -> tuple[str, str] | None:
        if isinstance(obj, FunctionType | type):
            return obj.__module__, obj.__qualname__
        return None


def _kept_globals(base: dict[str, Any]) -> dict[str, Any]:
    for name, value in base.items():
        _kept.globals.setdefault(name, value)
    return _kept.globals


_kept: Final = _Kept()
