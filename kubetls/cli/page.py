"""What a command has found, as lines for people and as JSON for programs. Pure.

Text from servers and files is escaped before it is shown: a certificate's name may
hold what a terminal takes for an order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, Literal

from kubetls.identity.names import escaped

TEXT_CHARACTERS: Final = 2000
"""How much of one text is shown; API errors hold up to 2 KiB of a server's words."""

Status = Literal["ok", "warn", "fail", "unknown", "skipped"]


class Exit(IntEnum):
    """Exit codes; they stay."""

    FINE = 0
    NO = 1
    USAGE = 2
    UNCHECKED = 3


_COLOURS: Final = {
    "ok": "32",
    "+": "32",
    "warn": "33",
    "?": "33",
    "FAIL": "1;31",
    "-": "31",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked.

    Attributes:
        check: What.
        status: "fail" is to be fixed, "warn" to be known; "unknown" could not be
            checked, "skipped" makes no sense yet.
        text: What was found.
        remedy: What to do about it, "" when the text says it.
        lines: Details for people.
    """

    check: str
    status: Status
    text: str
    remedy: str = ""
    lines: tuple[str, ...] = ()


@dataclass(slots=True)
class Answer:
    """What a command has to say.

    Attributes:
        code: How it exits.
        lines: For people: a mark that is coloured ("" for none), and text.
        data: For programs.
    """

    code: Exit
    lines: list[tuple[str, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def add(self, text: str, mark: str = "") -> None:
        """Add one line for people."""
        self.lines.append((mark, text))

    def page(self, *, colour: bool) -> str:
        """Return the lines as text."""
        return "".join(_line(mark, text, colour=colour) for mark, text in self.lines)

    def json(self) -> str:
        """Return the data as one JSON document."""
        return json.dumps({**self.data, "exit": int(self.code)}, indent=2) + "\n"


def _line(mark: str, text: str, *, colour: bool) -> str:
    shown = shown_text(text)
    number = _COLOURS.get(mark.strip())
    if not mark:
        return f"{shown}\n"
    if not colour or number is None:
        return f"{mark}{shown}\n"
    return f"\x1b[{number}m{mark}\x1b[0m{shown}\n"


def shown_text(text: str) -> str:
    """Return one line of text that is safe on a terminal."""
    return escaped(text, TEXT_CHARACTERS).replace("\\\\", "\\")


def texts(listed: object) -> list[str]:
    """Return what a server lists as texts; nothing when it lists nothing."""
    return [str(item) for item in listed] if isinstance(listed, list) else []


def span(seconds: float) -> str:
    """Return a length of time as people say it."""
    rest = abs(seconds)
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if rest >= 2 * size:
            return f"{rest / size:.0f} {unit}"
    return f"{rest:.0f} seconds"
