"""Label and field selectors, as far as tests need them: by equality."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Selects = Callable[[dict[str, Any]], bool]


# In a field's value a backslash goes before what would end it: comma, =, backslash.
_FIELD: Final = re.compile(r"(?:\\.|[^\\,])+")


class BadSelector(ValueError):
    """A selector that this server does not read."""


def selector(labels: str, fields: str) -> Selects:
    """Return a predicate on objects.

    Args:
        labels: key=value, key!=value, key and !key, behind commas.
        fields: path=value and path!=value, behind commas.

    Raises:
        BadSelector: Set-based and other requirements.
    """
    wanted = [_label(term) for term in labels.split(",") if term]
    wanted += [_field(term) for term in _FIELD.findall(fields)]
    return lambda item: all(matches(item) for matches in wanted)


def _label(term: str) -> Selects:
    if any(char in term for char in " ()<>"):
        raise BadSelector(f"only equality is supported, not {term!r}")
    key, value, negated = _parts(term)
    if value is None:
        return lambda item: (key in _labels(item)) != negated
    return lambda item: (_labels(item).get(key) == value) != negated


def _field(term: str) -> Selects:
    key, value, negated = _parts(term)
    if value is None:
        raise BadSelector(f"a field needs a value, {term!r} has none")
    value = re.sub(r"\\(.)", r"\1", value)
    return lambda item: (_at(item, key) == value) != negated


def _parts(term: str) -> tuple[str, str | None, bool]:
    """Return key, value (None for presence) and whether it is negated."""
    if "!=" in term:
        key, _, value = term.partition("!=")
        return key, value, True
    if "=" in term:
        key, _, value = term.partition("=")
        return key, value.removeprefix("="), False
    return term.removeprefix("!"), None, term.startswith("!")


def _labels(item: dict[str, Any]) -> dict[str, str]:
    return item["metadata"].get("labels") or {}


def _at(item: Any, path: str) -> str:
    for key in path.split("."):
        item = item.get(key) if isinstance(item, dict) else None
    return "" if item is None else str(item)
