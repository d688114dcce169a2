"""Becoming a copy of the app: its paths, its folder, its modules, its hook."""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import suppress

from flame_backend.wire.functions import load_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

TRACEBACK_CHARACTERS: Final = 64 * 1024


class HookError(Exception):
    """`on_boot` raised; its exception is the cause."""


def load_app(welcome: bytes) -> dict[str, Any]:
    """Load what a WELCOME names; return the setup of the slots.

    Raises:
        HookError: on_boot raised.
        BaseException: Whatever the app's modules raise.
    """
    facts, _, setup = welcome.partition(b"\n")
    places = json.loads(facts)
    # The app's order decides which module a name means; what only this interpreter
    # knows comes last.
    own = [path for path in sys.path if path not in places["sys_path"]]
    sys.path[:] = places["sys_path"] + own
    if places["cwd"]:
        with suppress(OSError):
            os.chdir(places["cwd"])
    found: dict[str, Any] = load_object(setup)
    prepare(found["preload"], found["on_boot"])
    return found


def prepare(preload: Sequence[str], on_boot: Callable[[], object] | None) -> None:
    """Import the app's modules and run its hook.

    Raises:
        HookError: on_boot raised.
        BaseException: Whatever the app's modules raise.
    """
    for module in preload:
        importlib.import_module(module)
    if on_boot is not None:
        try:
            on_boot()
        except BaseException as error:
            raise HookError from error


def failure(error: BaseException) -> dict[str, str]:
    """Return what is told about an app that failed to load; call it while handling."""
    import traceback

    phase, raised = "import", error
    if isinstance(error, HookError) and error.__cause__ is not None:
        phase, raised = "on_boot", error.__cause__
    return {
        "phase": phase,
        "reason": f"{type(raised).__name__}: {raised}"[:1024],
        "traceback": traceback.format_exc()[-TRACEBACK_CHARACTERS:],
    }
