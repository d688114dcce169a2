"""Start of a runner: `python -P -m flame_backend.runner`.

The first process becomes the agent. It forks the zygote before anything else, so that
neither TLS state nor a thread can exist in it.
"""

from __future__ import annotations

import gc
import os
import sys

EXIT_SKEW = 12
EXIT_USAGE = 64


def main() -> int:
    """Run the agent; return its exit code."""
    # Next to nothing that is loaded from here to READY is ever garbage; looking for
    # it would take 1 ms of a start, so even these imports come after this.
    gc.disable()
    import socket

    from flame_backend.errors import ParentError
    from flame_backend.runner.parent import (
        VARIABLE,
        is_of_another_version,
        parse_parent,
        remember,
    )

    _open_standard_streams()
    text = os.environ.get(VARIABLE)
    if text is None:
        print(f"{VARIABLE} is not set: runners are started by a pool", file=sys.stderr)
        return EXIT_USAGE
    try:
        parent = parse_parent(text)
    except ParentError as error:
        print(error, file=sys.stderr)
        return EXIT_SKEW if is_of_another_version(text) else EXIT_USAGE
    remember(parent)
    ours, theirs = socket.socketpair()
    agent = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        if parent.transport == "fd":
            os.close(parent.fd)
        from flame_backend.runner.zygote import run_zygote

        run_zygote(theirs, parent, agent)
    theirs.close()
    from flame_backend.runner.agent import Agent

    gc.enable()
    return Agent(parent, ours, pid).run()


def _open_standard_streams() -> None:
    """Have descriptors 0 to 2 taken, or a socket gets one and a print goes into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
