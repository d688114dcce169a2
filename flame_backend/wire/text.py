"""Text from the other side, made safe to log and to print. Pure."""

from __future__ import annotations


def clean(text: object, limit: int) -> str:
    """Return remote text that is safe to log and to print: no control characters."""
    if not isinstance(text, str):
        raise TypeError
    shown = text if len(text) <= limit else text[: limit - 4] + " ..."
    return "".join(
        char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}"
        for char in shown
    )
