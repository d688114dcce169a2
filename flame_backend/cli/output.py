"""How the commands speak: lines, tables, YAML or JSON; colour on a terminal only."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from flame_backend.wire.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CELL_CHARACTERS: Final = 200
ERROR_CHARACTERS: Final = 2000

_COLOURS: Final = {"green": "32", "yellow": "33", "red": "31", "dim": "2"}


def say(text: str = "") -> None:
    """Write one line of the answer."""
    sys.stdout.write(f"{text}\n")


def progress(text: str) -> None:
    """Tell somebody who waits at a terminal what goes on; nobody else."""
    if sys.stderr is not None and sys.stderr.isatty():
        words = " ".join(clean(text, CELL_CHARACTERS).split())
        sys.stderr.write(f"      {words}\n")
        sys.stderr.flush()


def fail(text: str) -> None:
    """Write what went wrong, as one line."""
    words = " ".join(clean(text, ERROR_CHARACTERS).split())
    if sys.stderr is not None:
        sys.stderr.write(f"flame-backend: {words}\n")


def as_json(value: Any) -> None:
    """Write a value as JSON; what JSON cannot say, as text."""
    try:
        text = json.dumps(value, indent=2, default=str, allow_nan=False)
    except (TypeError, ValueError):
        # Keys that are no text, NaN, a list within itself: no part of it would do.
        text = json.dumps(repr(value))
    say(text)


def as_yaml(documents: Iterable[dict[str, Any]]) -> None:
    """Write objects as YAML documents, fields in their own order."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            del data
            return True

    say(
        "---\n".join(
            yaml.dump(document, Dumper=Dumper, sort_keys=False, width=100)
            for document in documents
        ).rstrip("\n")
    )


def coloured(text: str, colour: str) -> str:
    """Return text in a colour when it goes to a terminal; NO_COLOR is respected."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows in columns, as kubectl does."""
    cells = [heads, *([_cell(text) for text in row] for row in rows)]
    widths = [max(len(row[number]) for row in cells) for number in range(len(heads))]
    for row in cells:
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        say("   ".join(padded).rstrip())


def _cell(text: str) -> str:
    return " ".join(clean(text, CELL_CHARACTERS).split()) or "-"


def age(seconds: float) -> str:
    """Return a span of time in its largest unit, as kubectl does."""
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"
