"""The table as a picture: one bar for each ratio, with its goal; SVG by hand."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Row = Any  # of benchmarks/pool.py, which imports this

WIDTH, LABELS, HEIGHT, TOP = 760, 330, 26, 34
ROOM = WIDTH - LABELS - 130
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}"
    ".yes{fill:#2da44e}.no{fill:#d4a72c}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)


def svg(rows: Sequence[Row]) -> str:
    """Return a picture of the rows that have a goal; the line is the goal."""
    drawn = [row for row in rows if row.goal]
    height = TOP + HEIGHT * len(drawn) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
        "<title>flame_backend beside the least that could do the same</title>",
        f"<style>{STYLE}</style>",
        f'<text x="{LABELS + ROOM // 2}" y="16" text-anchor="middle">goal</text>',
    ]
    for number, row in enumerate(drawn):
        parts += _bar(row, TOP + HEIGHT * number)
    middle = LABELS + ROOM // 2
    parts.append(
        f'<line x1="{middle}" x2="{middle}" y1="22" y2="{height - 8}" '
        'stroke="#656d76" stroke-dasharray="4 3"/>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _bar(row: Row, y: int) -> list[str]:
    """Half of the room is the goal; a bar that would be longer than all ends there."""
    length = min(ROOM, round(ROOM / 2 * row.found / row.goal))
    kind = "yes" if row.reached else "no"
    sign = "≤" if row.low else "≥"
    told = f"{row.found:.2f} ({sign} {row.goal:g})"
    end = LABELS + max(length, ROOM // 2) + 8
    size = f'width="{max(1, length)}" height="{HEIGHT - 10}" rx="2"'
    name = escape(row.what)
    return [
        f'<text x="{LABELS - 8}" y="{y + 15}" text-anchor="end">{name}</text>',
        f'<rect class="{kind}" x="{LABELS}" y="{y + 3}" {size}/>',
        f'<text x="{end}" y="{y + 15}">{told}</text>',
    ]
