"""Start an agent on this machine, with one end of a socketpair as its control link."""

from __future__ import annotations

import fcntl
import os
import site
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from flame_backend.runner.parent import PYTHONPATH_VARIABLE, VARIABLE, Parent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flame_backend.backends.base import PoolSpec

FIRST_DESCRIPTOR: Final = 3
FAILSAFE_SECONDS: Final = 20.0


def spawn_agent(
    python: str, env: Mapping[str, str | None], spec: PoolSpec, name: str
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start an agent; return its process and our end of its control link.

    Raises:
        OSError: It cannot be started.
    """
    ours, given = socket.socketpair()
    with given:
        # A parent without standard streams gets sockets in their place; the child's
        # streams are put there before it starts.
        theirs = fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR)
    try:
        parent = Parent(
            pool=spec.name,
            runner=name,
            transport="fd",
            fd=theirs,
            pid=os.getpid(),
            failsafe=max(FAILSAFE_SECONDS, min(spec.boot_timeout, 86_400.0)),
        )
        process = subprocess.Popen(  # noqa: S603 - the interpreter the caller chose
            [python, *_flags(python), "-P", "-m", "flame_backend.runner"],
            stdin=subprocess.DEVNULL,
            env=_environment(python, env) | {VARIABLE: parent.encoded()},
            pass_fds=[theirs],
            # Ctrl-C is the parent's to handle, and a session can be ended as a whole.
            start_new_session=True,
        )
    except OSError:
        ours.close()
        raise
    finally:
        os.close(theirs)
    return process, ours


def _flags(python: str) -> list[str]:
    """Return what the parent's interpreter was told, for the same interpreter."""
    if python != sys.executable:
        return []
    options = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    for name, value in sys._xoptions.items():  # noqa: SLF001 - documented under this name
        options.append(f"-X{name}" if value is True else f"-X{name}={value}")
    return options + [f"-W{option}" for option in sys.warnoptions]


def _environment(python: str, env: Mapping[str, str | None]) -> dict[str, str]:
    """Return the runner's environment: this one, the caller's changes, a path."""
    environment = dict(os.environ)
    for name, value in env.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    home = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120 - text is what travels
    if python != sys.executable or home not in site.getsitepackages():
        # The runner must find this package before it is told the app's paths. Its
        # children get the variable as it was.
        given = environment.get("PYTHONPATH")
        environment[PYTHONPATH_VARIABLE] = given or ""
        environment["PYTHONPATH"] = f"{given}{os.pathsep}{home}" if given else home
    return environment
