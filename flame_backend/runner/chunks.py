"""What a chunk of `Pool.map` runs; on the runner, so it imports nothing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def run_chunk(fn: Callable[..., Any], rows: list[tuple[Any, ...]]) -> list[Any]:
    """Run a function over a few rows."""
    return [fn(*row) for row in rows]
