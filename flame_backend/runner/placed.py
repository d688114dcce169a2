"""What a placement runs, in the process of its slot; so it imports next to nothing."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


def run_placed(
    target: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Run a target as a process of its own would: `sys.exit` ends it."""
    try:
        target(*args, **kwargs)
    except SystemExit as end:
        if end.code:
            _leave(end.code)


def _leave(code: object) -> NoReturn:
    """End this process as the interpreter would."""
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)
