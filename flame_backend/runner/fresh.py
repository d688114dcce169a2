"""A fresh interpreter where a fork would carry along what it must not.

Three uses: a slot of a zygote in which preloading left threads running (they hold
locks that no one lets go in a fork), a zygote whose modules have changed on disk, and
a slot that was handed a call of such a module. The last two keep their process, so
whoever watches it need not know. What the new program has to know is pickled into a
file without a name, the descriptors it needs are inherited.
"""

from __future__ import annotations

import os
import sys

from flame_backend.runner.parent import parse_parent
from flame_backend.wire.functions import dump_object, load_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Final, NoReturn

    from flame_backend.runner.parent import Parent

_HOME: Final = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120 - text is what travels
_CODE: Final = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from flame_backend.runner.restart import main; main()"
)


class Origin:
    """What makes this process a runner of its pool.

    Attributes:
        parent: Who started it.
        welcome: The body of WELCOME; empty until it came.
        environ: The environment before any code of the app ran.
    """

    def __init__(
        self, parent: Parent, welcome: bytes, environ: Mapping[str, str]
    ) -> None:
        self.parent: Final = parent
        self.welcome = welcome
        self.environ: Final = environ


def replace_process(
    origin: Origin, role: str, facts: dict[str, Any], descriptors: Iterable[int]
) -> NoReturn:
    """Run a fresh interpreter in this process.

    Args:
        origin: Of this process.
        role: What the program is to be: "zygote" or "call".
        facts: What it has to know.
        descriptors: What it inherits.
    """
    state = _written(origin, role, facts)
    for descriptor in (state, *descriptors):
        os.set_inheritable(descriptor, True)
    os.execve(sys.executable, _command(state), origin.environ)  # noqa: S606 - this interpreter


def spawn_slot(
    origin: Origin, facts: dict[str, Any], descriptor: int, output: list[int]
) -> int:
    """Start a slot as a child that shares nothing with this process; return its pid."""
    told = {
        "facts": facts,
        "descriptor": descriptor,
        "zygote": os.getpid(),
        "output": output,
    }
    state = _written(origin, "slot", told)
    try:
        # A duplicate onto itself is what lets one descriptor through.
        actions = [
            (os.POSIX_SPAWN_DUP2, number, number)
            for number in (state, descriptor, *output)
            if number >= 0
        ]
        return os.posix_spawn(
            sys.executable,
            _command(state),
            origin.environ,
            file_actions=actions,
            setpgroup=0,
        )
    finally:
        os.close(state)


def read_state(state: int) -> tuple[Origin, str, dict[str, Any]]:
    """Return origin, role and facts that the process before has left."""
    with open(state, "rb") as file:
        (parent, welcome, environ), role, facts = load_object(file.read())
    return Origin(parse_parent(parent), welcome, environ), role, facts


def _written(origin: Origin, role: str, facts: dict[str, Any]) -> int:
    plain = origin.parent.encoded(), origin.welcome, dict(origin.environ)
    body = dump_object((plain, role, facts))
    state = _nameless_file()
    with open(state, "wb", closefd=False) as file:
        file.write(body)
    os.lseek(state, 0, os.SEEK_SET)
    return state


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("flame")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _command(state: int) -> list[str]:
    """Return a command with the options that this interpreter was given."""
    given = sys.orig_argv[1:]
    options = given[: given.index("-P")] if "-P" in given else []
    return [sys.executable, *options, "-P", "-c", _CODE, _HOME, str(state)]
