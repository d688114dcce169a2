"""Why a call or a result cannot travel: the part of it, its type, and the remedy."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEARCH_DEPTH: Final = 32

_CONTAINERS: Final = {dict, list, tuple, set, frozenset}

_TABLES: Final = {"pandas", "polars", "pyarrow"}


class Packer(Protocol):
    """What is asked whether a part can travel."""

    reason: str

    def pack(self, value: object) -> bytes:
        """Pack a value, or raise."""

    def is_registered(self, kind: type) -> bool:
        """Tell whether a class is among the pool's result types."""

    def has_namesake(self, kind: type) -> bool:
        """Tell whether another class of its name is among them."""


def complaint(value: object, encoder: Packer) -> str:
    """Say which part of a result was refused, and what to do."""
    where, part = _offender(value, "result", encoder, 0)
    kind = type(part)
    if kind in _CONTAINERS and not encoder.reason:
        why = "is nested too deeply, contains itself, or holds what cannot travel"
        return f"{where} {why}: return flatter data"
    more = f" ({encoder.reason})" if encoder.reason else ""
    name = f"{kind.__module__}.{kind.__qualname__}"
    return f"{where} is of type {name}{more}: {_remedy(part, encoder)}"


def _remedy(part: object, encoder: Packer) -> str:
    kind = type(part)
    package = kind.__module__.partition(".")[0]
    choice = 'or use Pool(results="pickle") with runners that you trust'
    if package in _TABLES:
        return (
            "tables are not carried as data; return a dict of the columns as numpy "
            f"arrays, {choice}"
        )
    if package == "numpy":
        return f"return an array of numbers or bytes, or its tolist(), {choice}"
    named = isinstance(part, tuple) and hasattr(kind, "_fields")
    whole = dataclasses.is_dataclass(kind) or named
    classed = whole or isinstance(part, enum.Enum | BaseException)
    if classed and not encoder.is_registered(kind):
        wanted = f"pass Pool(result_types=({kind.__name__}, ...))"
        if encoder.has_namesake(kind):
            # A notebook's cell that was run again, a module that was loaded again.
            wanted = "result_types has an older class of that name; " + wanted
        return f"{wanted}, {choice}"
    for plain in (dict, list, tuple, set, frozenset, str, bytes, int, float):
        if isinstance(part, plain) and kind is not plain:
            return f"return {plain.__name__}(...) of it, {choice}"
    if hasattr(part, "__next__") or inspect.iscoroutine(part):
        way = "list" if hasattr(part, "__next__") else "asyncio.run"
        return f"return {way}(...) of it"
    return f"return plain data, {choice}"


def _offender(
    value: object, where: str, encoder: Packer, depth: int
) -> tuple[str, object]:
    """Find the innermost part that fails on its own."""
    if depth < SEARCH_DEPTH:
        for name, part in _parts(value, encoder):
            if not _can_travel(part, encoder):
                return _offender(part, where + name, encoder, depth + 1)
    _can_travel(value, encoder)  # so that the reason is this part's own
    return where, value


def _can_travel(value: object, encoder: Packer) -> bool:
    encoder.reason = ""
    try:
        encoder.pack(value)
    except (TypeError, ValueError, AttributeError, RecursionError):
        return False
    return True


def _parts(value: object, encoder: Packer) -> Iterator[tuple[str, object]]:
    """Yield what a value holds, each with how it is reached."""
    kind: Any = type(value)
    if isinstance(value, dict):
        for key, item in value.items():
            yield f" key {_shown(key)}", key
            yield f"[{_shown(key)}]", item
    elif encoder.is_registered(kind):
        yield from _attributes(value, kind)
    elif kind in _CONTAINERS:
        members: Any = value
        yield from ((f"[{number}]", item) for number, item in enumerate(members))


def _attributes(value: Any, kind: Any) -> Iterator[tuple[str, object]]:
    """Yield what an object of a registered class holds."""
    if isinstance(value, BaseException):
        yield ".args", list(value.args)
        yield from ((f".{name}", item) for name, item in vars(value).items())
    elif dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            yield f".{field.name}", getattr(value, field.name, None)
    elif isinstance(value, tuple):
        yield from (
            (f".{name}", item) for name, item in zip(kind._fields, value, strict=False)
        )


def _shown(key: object) -> str:
    try:
        return repr(key)[:40]
    except Exception:  # noqa: BLE001 - a user's __repr__
        return type(key).__name__


# ------------------------------------------------------------------ calls


def call_complaint(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    error: Exception,
    can_be_sent: Callable[[object], bool],
) -> str:
    """Say which argument, and which attribute of it, cannot be pickled."""
    parts = [("function", "the function", function)]
    parts += [
        (f"args[{number}]", f"argument {number + 1}", value)
        for number, value in enumerate(args)
    ]
    parts += [
        (f"kwargs[{name!r}]", f"argument {name}", value)
        for name, value in kwargs.items()
    ]
    for path, name, value in parts:
        if not can_be_sent(value):
            where, part = _unsendable(path, value, can_be_sent, SEARCH_DEPTH)
            kind = type(part)
            remedy = "pass plain data, or make it inside the function"
            if _is_ours(part):
                remedy = "runners make no calls; pass on results, not pools or futures"
            return (
                f"{where} (in {name}) cannot be sent: it is of type "
                f"{kind.__module__}.{kind.__qualname__} ({error}); {remedy}"
            )
    return f"the call cannot be sent ({error})"


def _unsendable(
    where: str, value: object, can_be_sent: Callable[[object], bool], depth: int
) -> tuple[str, object]:
    """Find the innermost part that cannot be sent on its own."""
    if depth:
        for name, part in _found(value):
            if not can_be_sent(part):
                return _unsendable(where + name, part, can_be_sent, depth - 1)
    return where, value


def _found(value: object) -> list[tuple[str, object]]:
    """Return what is reachable from a value, nothing when that cannot be told."""
    try:
        return list(_reachable(value))
    except Exception:  # noqa: BLE001 - a user's property, a variable not yet set
        return []


def _reachable(value: Any) -> Iterator[tuple[str, object]]:
    """Yield what a pickler would follow, each with how it is reached."""
    if isinstance(value, dict):
        yield from ((f"[{_shown(key)}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{number}]", item) for number, item in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((" member", item) for item in value)
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        found = inspect.getclosurevars(value)
        named = {**found.globals, **found.nonlocals}
        yield from ((f" variable {name}", item) for name, item in named.items())
    elif not isinstance(value, type) and not _is_ours(value):
        yield from _held(value)


def _is_ours(value: object) -> bool:
    """Tell whether it is a pool, a future, ...: what is in there helps nobody."""
    return type(value).__module__.partition(".")[0] == "flame_backend"


def _held(value: Any) -> Iterator[tuple[str, object]]:
    """Yield an object's attributes, those in slots too."""
    yield from (
        (f".{name}", item) for name, item in getattr(value, "__dict__", {}).items()
    )
    for base in type(value).__mro__:
        for name, slot in vars(base).items():
            if isinstance(slot, types.MemberDescriptorType) and hasattr(value, name):
                yield f".{name}", getattr(value, name)
