"""Run one program within limits: its output capped, its time bounded, no shell.

Nothing here raises: what a program printed may be secret, and an error would keep the
frame that holds it. The outcome says what happened.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kubetls.credentials.hidden import HiddenBytes

if TYPE_CHECKING:
    from collections.abc import Mapping

PRINTED_BYTES: Final = 1024 * 1024
"""Standard output kept; a token with a certificate chain has some KiB."""

SAID_BYTES: Final = 8 * 1024
"""Standard error kept, the end of it."""

_LOOK_SECONDS: Final = 0.05
"""How soon the end of a program is seen that left its pipes to a child."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        printed: Standard output.
        said: The end of standard error; nothing when it went to the terminal.
        code: Exit code, negative for a signal.
        fault: Why the run does not count, None when the program ended by itself.
        started: Whether there was a program at all.
    """

    printed: HiddenBytes
    said: HiddenBytes
    code: int = 0
    fault: str | None = None
    started: bool = True


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is to be run.

    Attributes:
        command: Path and arguments.
        environ: Its whole environment.
        seconds: How long it may take.
        interactive: It gets this process's standard input and error. Else it has no
            input and a process group of its own, which ends with it when it is ended.
    """

    command: tuple[str, ...] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    seconds: float
    interactive: bool

    def run(self) -> Ended:
        """Run it to its end, or end it."""
        try:
            process = subprocess.Popen(  # noqa: S603 - no shell; the caller's policy allowed it
                self.command,
                stdin=None if self.interactive else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if self.interactive else subprocess.PIPE,
                env=self.environ,
                start_new_session=not self.interactive,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            why = getattr(error, "strerror", None) or "its command line is refused"
            nothing = HiddenBytes(b"")
            return Ended(nothing, nothing, 0, f"does not start ({why})", started=False)
        reading = _Reading(process, time.monotonic() + self.seconds)
        try:
            fault = reading.to_the_end(self.seconds)
        finally:
            if process.poll() is None:
                self._end(process)
            reading.close()
        printed, said = bytes(reading.printed), bytes(reading.said)
        code = process.returncode
        return Ended(HiddenBytes(printed), HiddenBytes(said), code, fault)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if self.interactive:
            process.kill()
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _Reading:
    """Both pipes of a process, read as they fill."""

    def __init__(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        self.printed = bytearray()
        self.said = bytearray()
        self._process = process
        self._deadline = deadline
        self._selector = selectors.DefaultSelector()
        self._pipes = []
        for pipe, name in ((process.stdout, "printed"), (process.stderr, "said")):
            if pipe is not None:
                self._pipes.append(pipe)
                self._selector.register(pipe, selectors.EVENT_READ, name)

    def to_the_end(self, seconds: float) -> str | None:
        """Read until the process has ended; return why it has to be ended, or None."""
        while True:
            # Asked before the pipes are read: what it wrote last is then in them.
            ended = self._process.poll() is not None
            if not self._read(0 if ended else _LOOK_SECONDS) and ended:
                return None
            if len(self.printed) > PRINTED_BYTES:
                return f"printed more than {PRINTED_BYTES} bytes"
            if time.monotonic() >= self._deadline:
                return f"took longer than {seconds:g} s"

    def _read(self, wait: float) -> bool:
        """Read what is there; tell whether anything was."""
        if not self._selector.get_map():
            time.sleep(wait)
            return False
        some = False
        for key, _ in self._selector.select(wait):
            part = os.read(key.fd, 65536)
            some = some or bool(part)
            if not part:
                self._selector.unregister(key.fileobj)
            elif key.data == "printed":
                self.printed += part
            else:
                self.said += part
                del self.said[:-SAID_BYTES]
        return some

    def close(self) -> None:
        """Close our ends of the pipes."""
        self._selector.close()
        for pipe in self._pipes:
            pipe.close()
