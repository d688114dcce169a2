"""Credential plugins: found, run, and remembered as kubectl does, within limits.

A plugin runs in the thread that needs the credential, without a shell, and at most once
at a time. What it printed is kept in memory, for this plugin and cluster, until it
expires by the plugin's word or the server refuses it. Whatever happens, it is not run
again within `RERUN_SECONDS`: a hundred refused requests ask once.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from kubetls.credentials.exec_entry import (
    INFO_VARIABLE,
    ExecCredential,
    exec_info,
    last_words,
    parse_exec_credential,
    secret_texts,
)
from kubetls.credentials.program import Program
from kubetls.errors import ExecPluginError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubetls.credentials.exec_entry import ExecEntry

RERUN_SECONDS: Final = 10.0
"""Least time from a failure, or from a second run, to the next. The second is free:
what a plugin prints first may come from a stale cache of its own."""

RUN_SECONDS: Final = 60.0
"""How long a plugin may take. Those of the clouds take one to five."""

INTERACTIVE_SECONDS: Final = 600.0
"""The same when a person answers at the terminal, or in a browser."""

REMEMBERED: Final = 64
"""Plugin and cluster pairs kept; a process talks to a few."""

ExecPolicy = Literal["allow", "refuse"] | Callable[..., bool]
"""Whether plugins may run; see `kubeconfig`."""


class _Remembered:
    """The last run of one plugin for one cluster."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.limited_from: float | None = None
        self.credential: ExecCredential | None = None
        self.failure: tuple[Any, ...] | None = None


class ExecPlugins:
    """Runs plugins and remembers what they printed; thread-safe.

    Args:
        environ: What plugins inherit, and whose PATH they are looked for in.
        monotonic: Seconds on a clock that is never set.
        now: Seconds since the epoch.
        run_seconds: How long a plugin may take when nobody is asked.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        run_seconds: float = RUN_SECONDS,
    ) -> None:
        self._environ = environ
        self._monotonic = monotonic
        self._now = now
        self._run_seconds = run_seconds
        self._lock = threading.Lock()
        self._remembered: dict[tuple[ExecEntry, str], _Remembered] = {}
        _all.add(self)

    def credential(
        self,
        entry: ExecEntry,
        cluster: dict[str, Any],
        policy: ExecPolicy,
        *,
        fresh: bool = False,
    ) -> ExecCredential:
        """Return a plugin's credential, running it when there is none that will do.

        Args:
            entry: The plugin.
            cluster: What it is told about the cluster.
            policy: "allow", or a callable that is asked before each run with the
                program's path, its arguments and its added variables; anything but
                True refuses.
            fresh: The server refused what was read before.

        Raises:
            ExecPluginError: It is not there, not allowed, or failed.
        """
        kept = self._kept((entry, exec_info(entry, cluster, interactive=False)))
        with kept.lock:
            now = self._monotonic()
            since = kept.limited_from
            if since is not None and now - since < RERUN_SECONDS:
                return _outcome(kept)
            found = kept.credential
            if found is not None and not fresh and not self._expired(found):
                return found
            program = self._program(entry, cluster, policy)
            try:
                kept.credential, kept.failure = self._run(entry, program), None
            except ExecPluginError as error:
                # Its parts, not the error: an error keeps frames, and each raising
                # needs its own.
                kept.credential, kept.failure = None, error.args
            if found is not None or kept.failure is not None:
                kept.limited_from = self._monotonic()
            return _outcome(kept)

    def _kept(self, key: tuple[ExecEntry, str]) -> _Remembered:
        with self._lock:
            kept = self._remembered.pop(key, None) or _Remembered()
            self._remembered[key] = kept
            if len(self._remembered) > REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            return kept

    def _expired(self, credential: ExecCredential) -> bool:
        ends = credential.expires_at
        return ends is not None and self._now() >= ends

    # ------------------------------------------------------------------ running

    def _program(
        self, entry: ExecEntry, cluster: dict[str, Any], policy: ExecPolicy
    ) -> Program:
        interactive = self._interactive(entry)
        path = self._path(entry)
        if callable(policy):
            if policy(path, entry.args, dict(entry.env)) is not True:
                raise entry.fault("was refused by the callable passed as exec=")
        elif policy != "allow":
            raise entry.fault('is not run: exec="refuse"')
        told = exec_info(entry, cluster, interactive=interactive)
        environ = {**self._environ, **dict(entry.env), INFO_VARIABLE: told}
        seconds = INTERACTIVE_SECONDS if interactive else self._run_seconds
        return Program((path, *entry.args), environ, seconds, interactive)

    def _run(self, entry: ExecEntry, program: Program) -> ExecCredential:
        ended = program.run()
        if ended.fault is None and ended.code == 0:
            return parse_exec_credential(ended.printed, entry)
        secrets = secret_texts(entry, self._environ.items())
        words = last_words(ended.said.content, secrets)
        if ended.fault is not None:
            why = ended.fault
        elif ended.code < 0:
            why = f"was ended by signal {-ended.code}"
        else:
            why = f"failed with exit code {ended.code}"
        del secrets, program
        raise entry.fault(f"{why}: {words}" if words else why, hint=not ended.started)

    def _interactive(self, entry: ExecEntry) -> bool:
        if entry.interactive_mode == "Never":
            return False
        terminal = os.isatty(0)
        if entry.interactive_mode == "Always" and not terminal:
            reason = (
                "needs a person at a terminal (interactiveMode: Always), and standard "
                "input is none"
            )
            raise entry.fault(reason)
        return terminal

    def _path(self, entry: ExecEntry) -> str:
        """Return the program's path: beside the kubeconfig, or found in PATH.

        Relative parts of PATH are passed over: whoever owns the current folder would
        choose the program.
        """
        if "/" in entry.command:
            path = os.path.join(entry.folder, entry.command)  # noqa: PTH118 - text
            if _is_program(path):
                return path
            raise entry.fault("is not there, or is no program", hint=True)
        for folder in self._environ.get("PATH", "").split(os.pathsep):
            path = f"{folder.rstrip('/')}/{entry.command}"
            if folder.startswith("/") and _is_program(path):
                return path
        raise entry.fault("is in no absolute folder of PATH; install it", hint=True)

    def after_fork(self) -> None:
        """In a forked child: locks may have been held by threads that are gone."""
        self._lock = threading.Lock()
        for kept in self._remembered.values():
            kept.lock = threading.Lock()


def _outcome(kept: _Remembered) -> ExecCredential:
    if kept.credential is not None:
        return kept.credential
    assert kept.failure is not None  # one of the two, once it ran
    raise ExecPluginError(*kept.failure)


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)  # noqa: PTH113 - text


_all: weakref.WeakSet[ExecPlugins] = weakref.WeakSet()


def _renew_locks() -> None:
    for plugins in list(_all):
        plugins.after_fork()


os.register_at_fork(after_in_child=_renew_locks)

PLUGINS: Final = ExecPlugins()
"""Those of this process: sessions on the same cluster share a credential."""
