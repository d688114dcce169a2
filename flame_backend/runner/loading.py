"""Becoming a copy of the app: its paths, its folder, its modules, its hook."""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import suppress
from typing import Any

from flame_backend.wire.functions import load_object


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
    for module in found["preload"]:
        importlib.import_module(module)
    if found["on_boot"] is not None:
        try:
            found["on_boot"]()
        except BaseException as error:
            raise HookError from error
    return found
