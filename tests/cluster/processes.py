"""The programs of a test cluster: started, watched and ended by their handles."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.cluster.binaries import ClusterUnavailable
from tests.cluster.remains import record_process

if TYPE_CHECKING:
    from pathlib import Path


class Processes:
    """Children of this process, ended in reverse order, by handle and never by name."""

    def __init__(self, logs: Path, prefix: tuple[str, ...] = ()) -> None:
        self._logs = logs
        self.prefix = prefix
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, *command: str, env: dict[str, str] | None = None
    ) -> None:
        """Start one program with its output in a log of its name."""
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self.prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | (env or {}),
                start_new_session=True,
            )
        record_process(self._logs, process.pid, name)
        self._running[name] = process

    def require_alive(self) -> None:
        """Raise with the end of its log when a program has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                msg = f"{name} ended with {process.returncode}\n{self.tails()}"
                raise ClusterUnavailable(msg)

    def tails(self) -> str:
        """Return the last lines of the logs, for an error's text."""
        found = []
        for name in self._running:
            log = (self._logs / f"{name}.log").read_text(errors="replace")
            found += [f"{name}: {line}" for line in log.splitlines()[-8:]]
        return "\n".join(found)

    def pid(self, name: str) -> int:
        """Return a program's process id."""
        return self._running[name].pid

    def stop(self, name: str, seconds: float = 10.0) -> None:
        """End one program: SIGTERM, then SIGKILL."""
        process = self._running.pop(name, None)
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        """End all programs, the last one first."""
        for name in reversed(list(self._running)):
            self.stop(name, 5.0)
