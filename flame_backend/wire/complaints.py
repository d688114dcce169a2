"""Why a result cannot travel as data: the part of it, its type, and the remedy."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

SEARCH_DEPTH: Final = 32

_TABLES: Final = {"pandas", "polars", "pyarrow"}


class Packer(Protocol):
    """What is asked whether a part can travel."""

    reason: str

    def pack(self, value: object) -> bytes:
        """Pack a value, or raise."""

    def is_registered(self, kind: type) -> bool:
        """Tell whether a class is among the pool's result types."""


def complaint(value: object, encoder: Packer) -> str:
    """Say which part of a result was refused, and what to do."""
    where, part = _offender(value, "result", encoder, 0)
    kind = type(part)
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
        return f"pass Pool(result_types=({kind.__name__}, ...)), {choice}"
    for plain in (dict, list, tuple, set, frozenset, str, bytes, int, float):
        if isinstance(part, plain) and kind is not plain:
            return f"return {plain.__name__}(...) of it, {choice}"
    if hasattr(part, "__next__"):
        return "return list(...) of it"
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
            yield f" key {key!r:.40}", key
            yield f"[{key!r:.40}]", item
    elif encoder.is_registered(kind):
        yield from _attributes(value, kind)
    elif kind in {list, tuple, set, frozenset}:
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
