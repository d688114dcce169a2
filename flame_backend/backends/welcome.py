"""What an agent is told first: how to become a copy of the app."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from flame_backend.runner.parent import PROTOCOL_VERSION
from flame_backend.version import VERSION
from flame_backend.wire.functions import dump_object
from flame_backend.wire.text import clean

if TYPE_CHECKING:
    from flame_backend.backends.base import PoolSpec


def welcome_body(spec: PoolSpec) -> bytes:
    """Return the setup of a runner: facts as JSON, a newline, the rest pickled.

    The paths come first, as the pickle may need them to import what it names; the
    agent reads the JSON alone.

    Raises:
        NotSerializable: result_types or on_boot cannot be sent.
    """
    try:
        cwd = os.getcwd()  # noqa: PTH109 - text is what travels
    except OSError:
        cwd = ""
    # "" is the working folder, as an interactive Python has it.
    places = [path or cwd for path in sys.path if isinstance(path, str)]
    facts = {
        "sys_path": [path for path in places if path],
        "cwd": cwd,
        "shutdown_timeout": spec.shutdown_timeout,
    }
    setup: dict[str, Any] = {
        "preload": spec.preload,
        "on_boot": spec.on_boot,
        "results": spec.results,
        "result_types": spec.result_types,
        "max_result": spec.max_result,
        "max_payload": spec.max_payload,
    }
    return json.dumps(facts).encode() + b"\n" + dump_object(setup)


def version_skew(hello: dict[str, Any]) -> str | None:
    """Say how a runner's HELLO differs from this process, None when it does not.

    Functions pickled by value hold bytecode: another minor version of Python loads
    them and then crashes. Another version of this package may mean something else by
    a frame.
    """
    major, minor = sys.version_info[:2]
    ours = {
        "v": ("speaks version", PROTOCOL_VERSION),
        "package": ("has flame_backend", VERSION),
        "python": ("is", f"{sys.implementation.name}-{major}.{minor}"),
    }
    for name, (verb, own) in ours.items():
        theirs = clean(str(hello.get(name)), 64)
        if theirs != str(own):
            here = f"this process {verb} {own}"
            return f"the runner {verb} {theirs}, {here}; use the same image"
    return None
