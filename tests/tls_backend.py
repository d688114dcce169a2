"""Runners of this machine that dial in over TLS, as pods do: for tests and benchmarks.

The listener, its certificate, the agents' pin, the tickets and the hub are the real
ones; only the judge of HELLO is replaced, as there is no cluster to ask: it wants the
token that was written for the runner.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flame_backend.backends.base import RunnerInfo
from flame_backend.backends.hub import Hub
from flame_backend.backends.kubernetes.listener import Listener
from flame_backend.errors import (
    AppImportError,
    BootError,
    LinkUnauthenticated,
    RunnerLost,
)
from flame_backend.runner.parent import VARIABLE, Parent

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from flame_backend.backends.base import PoolSpec, Sink, SlotEnd
    from flame_backend.wire.link import Link

ROOT = Path(__file__).resolve().parent.parent


class Judge:
    """Admits whoever shows the token of the runner it claims to be."""

    def __init__(self) -> None:
        self.tokens: dict[str, str] = {}

    def admit(
        self, body: bytes, _addresses: frozenset[str], take: Callable[[], bool]
    ) -> tuple[str, dict[str, Any]]:
        """Return runner and facts of a HELLO, or refuse."""
        facts = json.loads(body)
        if self.tokens.get(facts["runner"]) != facts["token"]:
            msg = "another token"
            raise LinkUnauthenticated(msg)
        if not take():
            msg = "cut meanwhile"
            raise LinkUnauthenticated(msg)
        return facts["runner"], facts


class TlsBackend:
    """One agent for each runner, over TLS on loopback."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ready: set[str] = set()
        self.failsafe = 20.0
        self.closing = False

    def open(self, spec: PoolSpec, sink: Sink) -> None:
        """Listen."""
        self._spec = spec
        self._sink = sink
        self.judge = Judge()
        self._folder = Path(tempfile.mkdtemp())
        self.hub = Hub(spec, self)
        self.listener = Listener(
            ("127.0.0.1",),
            0,
            self.judge,
            self._runner_connected,
            self._slot_connected,
        )

    def variable(self, runner: str, **changes: Any) -> dict[str, str]:
        """Return a runner's environment, and write its token."""
        token = secrets.token_hex(16)
        self.judge.tokens[runner] = token
        path = self._folder / runner
        path.write_text(token)
        facts = {
            "pool": self._spec.name,
            "runner": runner,
            "transport": "tls",
            "addresses": ("127.0.0.1",),
            "port": self.listener.port,
            "certificate": self.listener.certificate,
            "token_path": str(path),
            "failsafe": self.failsafe,
        }
        parent = Parent(**(facts | changes))  # type: ignore[arg-type]
        return {**os.environ, VARIABLE: parent.encoded(), "PYTHONPATH": str(ROOT)}

    def boot(self, runner: str) -> None:
        """Start an agent that dials in."""
        self.processes[runner] = subprocess.Popen(
            [sys.executable, "-P", "-m", "flame_backend.runner"],
            stdin=subprocess.DEVNULL,
            env=self.variable(runner),
            start_new_session=True,
        )

    def open_slot(self, runner: str, slot: int) -> None:
        """Have the agent fork."""
        self.hub.open_slot(runner, runner, slot)

    def kill_slot(self, runner: str, slot: int, grace: float = 2.0) -> None:
        """Have the agent kill."""
        self.hub.kill_slot(runner, runner, slot, grace)

    def end(self, runner: str, grace: float = 0.0) -> None:
        """Have the agent end."""
        self.hub.shut_down(runner, grace)

    def close(self, grace: float) -> None:
        """End all, and leave nothing."""
        self.closing = True
        self.listener.close()
        for runner in self.processes:
            self.hub.shut_down(runner, grace)
        for process in self.processes.values():
            process.wait(grace + 20)
        self.hub.close()
        for thread in threading.enumerate():
            if thread.name == "flame-peer":
                thread.join()
        shutil.rmtree(self._folder)

    def after_fork(self) -> None:
        """Not needed here."""

    def log_tail(self, runner: str, call: int) -> str:
        """Return the last lines of a call."""
        return self.hub.output.tail(runner, call)

    def describe(self) -> dict[str, Any]:
        """Name itself."""
        return {"kind": "tls", "port": self.listener.port}

    # ------------------------------------------------------------------ the listener's

    def _runner_connected(
        self, runner: str, sock: ssl.SSLSocket, _facts: dict[str, object]
    ) -> None:
        self.hub.adopt(runner, sock, passes=False)

    def _slot_connected(self, ticket: bytes, sock: ssl.SSLSocket) -> None:
        if not self.hub.slot_connected(ticket, sock):
            msg = "no such ticket"
            raise LinkUnauthenticated(msg)

    # ------------------------------------------------------------------ the hub's

    def agent_ready(self, agent: str, phases: list[tuple[str, float]]) -> None:
        """Open all slots."""
        self.ready.add(agent)
        self._sink.ready(RunnerInfo(runner=agent, phases=tuple(phases)))
        for slot in range(self._spec.slots):
            self.hub.open_slot(agent, agent, slot)

    def agent_failed(self, agent: str, phase: str, reason: str, log: str) -> None:
        """Fail the boot."""
        self._sink.boot_failed(agent, AppImportError(agent, phase, reason, log))

    def agent_draining(self, agent: str, reason: str) -> None:
        """Pass it on."""
        self._sink.draining(agent, reason)

    def agent_silent(self, agent: str, *, silent: bool) -> None:
        """Pass it on."""
        self._sink.suspect(agent, silent=silent)

    def agent_gone(self, agent: str, reason: str, *, expected: bool) -> None:
        """Tell the loss."""
        if self.closing:
            return
        if agent in self.ready:
            self._sink.lost(agent, RunnerLost(agent, "Crashed", reason))
        else:
            self._sink.boot_failed(agent, BootError(agent, "start", reason))

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """Pass it on."""
        self._sink.slot_opened(runner, slot, link)

    def slot_ended(self, end: SlotEnd) -> None:
        """Pass it on."""
        self._sink.slot_ended(end)
