"""Runners as processes of this machine.

One agent and zygote serve all runners of a pool: a local runner is its slots, forked
from the zygote in milliseconds, with the app loaded once. The control link is an
inherited socketpair; possession of the descriptor is the proof, and there is no
listener and no port. The environment is the parent's: it is the same app.

An agent that dies, or is told to end, takes no new runners; the next boot starts
another one.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.agent_process import END_SECONDS, await_end, pidfd
from flame_backend.backends.base import KILL_GRACE_SECONDS, RunnerInfo
from flame_backend.backends.hub import Hub
from flame_backend.backends.spawn import spawn_agent
from flame_backend.errors import (
    AppImportError,
    BootError,
    BootTimeout,
    ConfigurationError,
    RunnerLost,
    VersionSkew,
)
from flame_backend.runner.family import join_family

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

    from flame_backend.backends.base import PoolSpec, Sink, SlotEnd
    from flame_backend.backends.output import Output
    from flame_backend.wire.link import Link

LINGER_SECONDS: Final = 1.0
"""How long an agent whose link is gone may take to end by itself."""


class _Agent:
    """One agent, and the runners on it."""

    __slots__ = ("ending", "loaded", "name", "process", "runners")

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process
        self.loaded = False
        # Takes no new runners, whatever is heard of it.
        self.ending = False
        self.runners: set[str] = set()


class _Runner:
    """One runner."""

    __slots__ = ("agent", "ready", "started")

    def __init__(self, agent: _Agent) -> None:
        self.agent = agent
        self.ready = False
        self.started = time.monotonic()


class LocalBackend:
    """Runs runners as local processes.

    Args:
        python: Interpreter of the runners; must be of this process' minor version.
        env: Variables added to the environment the runners inherit; None deletes one.

    Raises:
        ConfigurationError: A variable is no text.
    """

    def __init__(
        self,
        python: str | os.PathLike[str] = sys.executable,
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        self._python = os.fspath(python)
        self._env = dict(env or {})
        for name, value in self._env.items():
            if not isinstance(name, str) or not isinstance(value, str | None):
                raise ConfigurationError("env", f"{name!r}: names and values are text")
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._hub: Hub | None = None
        # Also asked when the pool has ended.
        self._output: Output | None = None
        self._agents: dict[str, _Agent] = {}
        self._current: _Agent | None = None
        self._runners: dict[str, _Runner] = {}
        self._count = 0

    # ------------------------------------------------------------------ Backend

    def open(self, spec: PoolSpec, sink: Sink) -> None:
        """Start the hub; an agent starts with the first boot.

        Raises:
            ConfigurationError: There is no such interpreter, or it serves another pool.
        """
        if self._hub is not None:
            reason = "this LocalBackend serves another pool; make one more"
            raise ConfigurationError("backend", reason)
        if shutil.which(self._python) is None:
            reason = f"{self._python} is no program that can be run"
            raise ConfigurationError("python", reason)
        self._spec = spec
        self._sink = sink
        self._hub = Hub(_of_one_family(spec), self)
        self._output = self._hub.output

    def boot(self, runner: str) -> None:
        """Start a runner: its slots, and an agent when there is none."""
        with self._lock:
            hub = self._hub
            if hub is None:
                return
            try:
                agent = self._current or self._start_agent(hub)
            except OSError as error:
                failure = BootError(runner, "start", f"{self._python}: {error}")
            else:
                self._runners[runner] = _Runner(agent)
                agent.runners.add(runner)
                hub.after(self._spec.boot_timeout, lambda: self._overdue(runner))
                if agent.loaded:
                    self._open_slots(hub, agent, runner)
                return
        self._sink.boot_failed(runner, failure)

    def open_slot(self, runner: str, slot: int) -> None:
        """Fork another process for a slot."""
        hub, found = self._hub, self._runners.get(runner)
        if hub is not None and found is not None:
            hub.open_slot(found.agent.name, runner, slot)

    def kill_slot(
        self, runner: str, slot: int, grace: float = KILL_GRACE_SECONDS
    ) -> None:
        """End a slot's process."""
        hub, found = self._hub, self._runners.get(runner)
        if hub is not None and found is not None:
            hub.kill_slot(found.agent.name, runner, slot, grace)

    def end(self, runner: str, grace: float = 0.0) -> None:
        """End a runner's slots; its agent stays for the others."""
        with self._lock:
            found = self._runners.get(runner)
            hub = self._hub
        if found is None or hub is None:
            return
        if grace > 0:
            hub.after(grace, lambda: self.end(runner))
            return
        self._give_up(hub, runner)

    def close(self, grace: float) -> None:
        """End the agents and everything below them; returns when all are gone."""
        with self._lock:
            hub, self._hub = self._hub, None
            agents = list(self._agents.values())
            self._agents.clear()
            self._runners.clear()
            self._current = None
        if hub is None:
            return
        for agent in agents:
            hub.shut_down(agent.name, grace)
        deadline = time.monotonic() + grace + END_SECONDS
        for agent in agents:
            await_end(agent.process, deadline - time.monotonic())
        hub.close()

    def after_fork(self) -> None:
        """In a forked child: forget the parent's runners."""
        if self._hub is not None:
            self._hub.after_fork()
        for agent in self._agents.values():
            # They are not this process' children: nothing to wait for or warn about.
            agent.process.returncode = 0
        self._reset()

    def log_tail(self, runner: str, call: int) -> str:
        """Return the last lines that a call printed, as far as they have arrived."""
        return "" if self._output is None else self._output.tail(runner, call)

    def describe(self) -> dict[str, Any]:
        """Return facts for status()."""
        pid = self._current.process.pid if self._current else None
        return {"kind": "local", "python": self._python, "agent_pid": pid}

    # ------------------------------------------------------------------ inside

    def _start_agent(self, hub: Hub) -> _Agent:
        """Spawn an agent; holds the lock."""
        self._count += 1
        name = f"local-{self._count}"
        process, sock = spawn_agent(self._python, self._env, self._spec, name)
        agent = self._agents[name] = self._current = _Agent(name, process)
        hub.adopt(name, sock, passes=True, process=pidfd(process.pid))
        return agent

    def _open_slots(self, hub: Hub, agent: _Agent, runner: str) -> None:
        for slot in range(self._spec.slots):
            hub.open_slot(agent.name, runner, slot)

    def _forget(self, runner: str) -> _Runner | None:
        found = self._runners.pop(runner, None)
        if found is not None:
            found.agent.runners.discard(runner)
        return found

    def _give_up(self, hub: Hub, runner: str) -> bool:
        """Forget a runner and end its slots; False when it was forgotten before."""
        with self._lock:
            found = self._forget(runner)
            if found is None:
                return False
            agent = found.agent
            unused = not agent.runners and agent is not self._current
        for slot in range(self._spec.slots):
            hub.kill_slot(agent.name, runner, slot)
        if unused:
            hub.shut_down(agent.name, 0.0)
        return True

    def _overdue(self, runner: str) -> None:
        hub, found = self._hub, self._runners.get(runner)
        if hub is None or found is None or found.ready:
            return
        agent = found.agent
        if not self._give_up(hub, runner):
            return
        what = "its process to connect" if agent.loaded else "the app to load"
        reason = f"waited {self._spec.boot_timeout:g} s for {what}"
        phase = "connect" if agent.loaded else "import"
        if not agent.loaded:
            # An import that hangs would hold up the next boot as well.
            with self._lock:
                self._retire(agent)
            agent.process.kill()
        self._sink.boot_failed(runner, BootTimeout(runner, phase, reason))

    def _retire(self, agent: _Agent) -> None:
        """Boot no more runners on an agent."""
        agent.ending = True
        self._pass_over(agent)

    def _pass_over(self, agent: _Agent) -> None:
        if self._current is agent:
            self._current = None

    # ------------------------------------------------------------------ hub events

    def agent_ready(self, agent: str, phases: list[tuple[str, float]]) -> None:
        """Open the slots of every runner that waits for the app."""
        del phases
        with self._lock:
            found, hub = self._agents.get(agent), self._hub
            if found is None or hub is None:
                return
            found.loaded = True
            for runner in found.runners:
                self._open_slots(hub, found, runner)

    def agent_failed(self, agent: str, phase: str, reason: str, log: str) -> None:
        """Fail every runner of the agent with the app's own words.

        Runners that were ready are lost: what they had loaded was loaded once more.
        """
        kind = VersionSkew if phase == "connect" else AppImportError
        with self._lock:
            found = self._agents.get(agent)
            if found is None:
                return
            self._retire(found)
            runners = {name: self._forget(name) for name in list(found.runners)}
        for runner, known in runners.items():
            if known is not None and known.ready:
                how = f"the app failed to load again: {reason}"
                self._sink.lost(runner, RunnerLost(runner, "Crashed", how))
            else:
                self._sink.boot_failed(runner, kind(runner, phase, reason, log))

    def agent_draining(self, agent: str, reason: str) -> None:
        """Somebody ended the agent: its calls may finish, boots start another one."""
        with self._lock:
            found = self._agents.get(agent)
            if found is None:
                return
            self._retire(found)
            runners = list(found.runners)
        for runner in runners:
            self._sink.draining(runner, reason)

    def agent_silent(self, agent: str, *, silent: bool) -> None:
        """The agent is stopped: calls and boots go elsewhere meanwhile."""
        with self._lock:
            found = self._agents.get(agent)
            if found is None:
                return
            if silent:
                self._pass_over(found)
            elif self._current is None and not found.ending:
                self._current = found
            runners = list(found.runners)
        for runner in runners:
            self._sink.suspect(runner, silent=silent)

    def agent_gone(self, agent: str, reason: str, *, expected: bool) -> None:
        """Lose every runner of the agent."""
        del expected
        with self._lock:
            found = self._agents.pop(agent, None)
            if found is None:
                return
            self._retire(found)
            runners = {name: self._forget(name) for name in list(found.runners)}
        code = await_end(found.process, LINGER_SECONDS)
        how = f"{reason}; its agent ended with {_told(code)}"
        for runner, known in runners.items():
            if known is not None and known.ready:
                number = -code if code < 0 else None
                exit_code = code if code >= 0 else None
                error = RunnerLost(runner, "Crashed", how, False, exit_code, number)
                self._sink.lost(runner, error)
            else:
                self._sink.boot_failed(runner, BootError(runner, "start", how))

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """Report a slot, and its runner with the first one."""
        with self._lock:
            found = self._runners.get(runner)
            first = found is not None and not found.ready
            if found is not None:
                found.ready = True
        if found is None:
            link.close()
            return
        if first:
            took = time.monotonic() - found.started
            node = socket.gethostname()
            self._sink.ready(RunnerInfo(runner=runner, node=node, boot_seconds=took))
        self._sink.slot_opened(runner, slot, link)

    def slot_ended(self, end: SlotEnd) -> None:
        """Pass it on."""
        self._sink.slot_ended(end)


def _of_one_family(spec: PoolSpec) -> PoolSpec:
    """Let runners use the managers of this process, when it has made any."""
    managers = sys.modules.get("multiprocessing.managers")
    if managers is None:
        return spec
    authkey = bytes(managers.process.current_process().authkey)
    return replace(spec, on_boot=partial(join_family, authkey, spec.on_boot))


def _told(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
