"""Runners as processes of this machine.

One agent and zygote serve all runners of a pool: a local runner is its slots, forked
from the zygote in milliseconds, with the app loaded once. The control link is an
inherited socketpair; possession of the descriptor is the proof, and there is no
listener and no port. The environment is the parent's: it is the same app.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.base import RunnerInfo
from flame_backend.backends.hub import Hub
from flame_backend.errors import AppImportError, BootError, BootTimeout, RunnerLost
from flame_backend.runner.parent import VARIABLE, Parent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flame_backend.backends.base import PoolSpec, Sink
    from flame_backend.wire.link import Link

AGENT: Final = "local"
END_SECONDS: Final = 5.0


class LocalBackend:
    """Runs runners as local processes.

    Args:
        python: Interpreter of the runners; must be of this process' minor version.
        env: Variables added to the environment the runners inherit; None deletes one.
    """

    def __init__(
        self,
        python: str = sys.executable,
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        self._python = python
        self._env = dict(env or {})
        self._lock = threading.Lock()
        self._agent: subprocess.Popen[bytes] | None = None
        self._generation = 0
        self._loaded = False
        self._runners: dict[str, float] = {}
        self._ready: set[str] = set()
        self._hub: Hub | None = None
        self._timers: dict[str, threading.Timer] = {}

    # ------------------------------------------------------------------ Backend

    def open(self, spec: PoolSpec, sink: Sink) -> None:
        """Start the hub; the agent starts with the first boot."""
        self._spec = spec
        self._sink = sink
        self._hub = Hub(spec, self)

    def boot(self, runner: str) -> None:
        """Start a runner: its slots, and the agent when there is none."""
        with self._lock:
            self._runners[runner] = time.monotonic()
            timer = threading.Timer(
                self._spec.boot_timeout, self._boot_timed_out, [runner]
            )
            timer.daemon = True
            timer.start()
            self._timers[runner] = timer
            if self._agent is not None:
                if self._loaded:
                    self._open_slots(runner)
                return
            try:
                self._start_agent()
            except OSError as error:
                failure = BootError(
                    runner, "start", f"{self._python}: {error.strerror}"
                )
                self._forget(runner)
            else:
                return
        self._sink.boot_failed(runner, failure)

    def open_slot(self, runner: str, slot: int) -> None:
        """Fork another process for a slot."""
        if self._hub is not None and runner in self._runners:
            self._hub.open_slot(self._name, runner, slot)

    def kill_slot(self, runner: str, slot: int) -> None:
        """End a slot's process."""
        if self._hub is not None:
            self._hub.kill_slot(self._name, runner, slot)

    def end(self, runner: str, grace: float = 0.0) -> None:
        """End a runner's slots; the agent stays for the others."""
        del grace  # the pool has drained a runner before it ends it
        with self._lock:
            known = runner in self._runners
            self._forget(runner)
        if known and self._hub is not None:
            for slot in range(self._spec.slots):
                self._hub.kill_slot(self._name, runner, slot)

    def close(self, grace: float) -> None:
        """End the agent and everything below it; returns when all are gone."""
        with self._lock:
            agent, self._agent = self._agent, None
            hub, self._hub = self._hub, None
            for runner in list(self._runners):
                self._forget(runner)
        if hub is None:
            return
        if agent is not None:
            hub.shut_down(self._name, grace)
            with suppress(subprocess.TimeoutExpired):
                agent.wait(grace + END_SECONDS)
        hub.close()
        if agent is not None:
            self._await_end(agent)

    def describe(self) -> dict[str, Any]:
        """Return facts for status()."""
        pid = self._agent.pid if self._agent else None
        return {"kind": "local", "python": self._python, "agent_pid": pid}

    # ------------------------------------------------------------------ the agent

    @property
    def _name(self) -> str:
        return f"{AGENT}-{self._generation}"

    def _start_agent(self) -> None:
        """Spawn agent and zygote with one end of a socketpair; holds the lock."""
        assert self._hub is not None  # open() comes before boot()
        self._generation += 1
        self._loaded = False
        ours, theirs = socket.socketpair()
        with theirs:
            parent = Parent(
                pool=self._spec.name,
                runner=self._name,
                transport="fd",
                fd=theirs.fileno(),
                failsafe=max(20.0, self._spec.boot_timeout),
            )
            environment = os.environ | {VARIABLE: parent.encoded()}
            for name, value in self._env.items():
                environment.pop(name, None)
                if value is not None:
                    environment[name] = value
            # The package may be importable from sys.path alone (a checkout).
            environment["PYTHONPATH"] = os.pathsep.join(_import_paths(environment))
            try:
                self._agent = subprocess.Popen(  # noqa: S603 - the interpreter the caller chose
                    [self._python, "-P", "-m", "flame_backend.runner"],
                    stdin=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C is the parent's to handle.
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        self._hub.adopt(self._name, ours, passes=True)

    def _await_end(self, agent: subprocess.Popen[bytes]) -> None:
        try:
            agent.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()

    def _open_slots(self, runner: str) -> None:
        assert self._hub is not None  # callers hold a live backend
        for slot in range(self._spec.slots):
            self._hub.open_slot(self._name, runner, slot)

    def _forget(self, runner: str) -> None:
        self._runners.pop(runner, None)
        self._ready.discard(runner)
        timer = self._timers.pop(runner, None)
        if timer is not None:
            timer.cancel()

    def _boot_timed_out(self, runner: str) -> None:
        with self._lock:
            if runner not in self._runners or runner in self._ready:
                return
            loaded = self._loaded
            self._forget(runner)
        phase = "start" if loaded else "import"
        what = "its process to connect" if loaded else "the app to load"
        limit = self._spec.boot_timeout
        reason = f"waited {limit:g} s for {what}"
        self._sink.boot_failed(runner, BootTimeout(runner, phase, reason))

    # ------------------------------------------------------------------ hub events

    def agent_ready(self, agent: str, phases: list[tuple[str, float]]) -> None:
        """Open the slots of every runner that waits for the app."""
        del agent, phases
        with self._lock:
            self._loaded = True
            for runner in self._runners:
                self._open_slots(runner)

    def agent_failed(self, agent: str, phase: str, reason: str, log: str) -> None:
        """Fail every runner with the app's own words."""
        del agent
        for runner in self._take_runners():
            self._sink.boot_failed(runner, AppImportError(runner, phase, reason, log))

    def agent_gone(self, agent: str, reason: str, *, expected: bool) -> None:
        """Lose every runner; the next boot starts another agent."""
        del expected
        if agent != self._name:
            return
        with self._lock:
            process, self._agent = self._agent, None
            self._loaded = False
            ready = set(self._ready)
        runners = self._take_runners()
        code = None
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(END_SECONDS)
        how = reason if code is None else f"its agent ended with {code}"
        for runner in runners:
            if runner in ready:
                error = RunnerLost(runner, "Crashed", how, False, code)
                self._sink.lost(runner, error)
            else:
                self._sink.boot_failed(runner, BootError(runner, "start", how))

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """Report a slot, and its runner with the first one."""
        with self._lock:
            started = self._runners.get(runner)
            first = started is not None and runner not in self._ready
            if first:
                self._ready.add(runner)
                self._timers.pop(runner).cancel()
        if started is None:
            link.close()
            return
        if first:
            took = time.monotonic() - started
            node = socket.gethostname()
            self._sink.ready(RunnerInfo(runner=runner, node=node, boot_seconds=took))
        self._sink.slot_opened(runner, slot, link)

    def slot_ended(
        self, runner: str, slot: int, exit_code: int | None, signal: int | None
    ) -> None:
        """Pass it on."""
        self._sink.slot_ended(runner, slot, exit_code, signal)

    def _take_runners(self) -> list[str]:
        with self._lock:
            runners = list(self._runners)
            for runner in runners:
                self._forget(runner)
        return runners


def _import_paths(environment: dict[str, str]) -> list[str]:
    home = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120 - text is what travels
    known = [
        path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path
    ]
    return known if home in known else [*known, home]
