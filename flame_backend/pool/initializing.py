"""What a slot runs before its first call; on the runner, so it imports nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def run_initializer(fn: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Run a function for what it does; what it returns need not travel."""
    fn(*args)
