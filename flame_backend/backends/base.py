"""The contract between a pool and whatever provides its runners.

A backend boots runners and ends them; it never runs a call. All its outcomes arrive
through one `Sink`, from any thread, and every boot that was asked for ends in exactly
one of `ready`, `boot_failed` or (after `end`) silence. A slot is one process on a
runner with one link; the pool's callers use that link directly.

Values and protocols only; nothing here does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.errors import BootError, RunnerLost
    from flame_backend.wire.link import Link

BOOT_TIMEOUT_SECONDS = 120.0
SCALE_UP_TIMEOUT_SECONDS = 900.0
SHUTDOWN_TIMEOUT_SECONDS = 25.0

MAX_RESULT_BYTES = 16 * 1024 * 1024
"""Default of max_result; bounds what a runner can make the parent's decoder build."""

KILL_GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL for a slot that is ended."""

MAX_PAYLOAD_BYTES = 256 * 1024 * 1024
"""Default of max_payload; a larger argument should travel as a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """What a backend and its runners must know about the pool.

    Attributes:
        name: The pool's name, a DNS label of at most 40 characters.
        instance: Random identity of this pool object, lower-case hex; two processes
            of one pod never share it.
        slots: Slots of each runner (max_concurrency).
        boot_timeout: Seconds from `boot` until the runner must be ready.
        scale_up_timeout: Seconds for which that clock may stand still, in all, while a
            node is being provisioned or an image pulled.
        max_lifetime: Seconds of service after which the pool gives a ready runner no
            more calls; for a backend that can end one which outlives its pool.
        shutdown_timeout: Seconds a runner's calls may take to finish at a drain.
        results: Codec of results; the pool's choice, never the frame's.
        result_types: Dataclasses and exception classes that results may name.
        max_result: Largest in-band result in bytes.
        max_payload: Largest request in bytes.
        preload: Modules a runner imports before it is ready.
        on_boot: Called once in each runner after that, before its slots are forked.
    """

    name: str
    instance: str
    slots: int = 1
    boot_timeout: float = BOOT_TIMEOUT_SECONDS
    scale_up_timeout: float = SCALE_UP_TIMEOUT_SECONDS
    max_lifetime: float | None = None
    shutdown_timeout: float = SHUTDOWN_TIMEOUT_SECONDS
    results: Literal["data", "pickle"] = "data"
    result_types: tuple[type, ...] = ()
    max_result: int = MAX_RESULT_BYTES
    max_payload: int = MAX_PAYLOAD_BYTES
    preload: tuple[str, ...] = ()
    on_boot: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """Facts about a runner that is ready.

    Attributes:
        runner: Name of the runner; in a cluster, of its pod.
        node: Name of the node or host, or "" when unknown.
        boot_seconds: From `boot` to ready.
        phases: Seconds each boot phase took, in order ("create", "schedule", ...).
    """

    runner: str
    node: str = ""
    boot_seconds: float = 0.0
    phases: tuple[tuple[str, float], ...] = field(default=())


class SlotEnd(NamedTuple):
    """How a slot's process ended.

    Attributes:
        runner: Its runner.
        slot: Its number there.
        exit_code: Its exit code, None when a signal ended it.
        signal: That signal's number, else None.
        detail: What else is known: "OOMKilled: ...", or "".
    """

    runner: str
    slot: int
    exit_code: int | None
    signal: int | None
    detail: str = ""


class Sink(Protocol):
    """Where a backend reports; implemented by the pool, callable from any thread.

    No method blocks or raises. A report about a runner the pool has already given up
    is ignored.
    """

    def ready(self, info: RunnerInfo) -> None:
        """The runner proved its identity and has loaded the app."""

    def slot_opened(self, runner: str, slot: int, link: Link) -> None:
        """A slot's link is open; from now on the pool owns and closes it."""

    def slot_ended(self, end: SlotEnd) -> None:
        """A slot's process ended; the pool asks for another when it wants one."""

    def boot_failed(self, runner: str, error: BootError) -> None:
        """The runner will not come; everything of it is gone or being deleted."""

    def draining(self, runner: str, reason: str) -> None:
        """A runner was told to end: calls that run may finish, others go elsewhere."""

    def suspect(self, runner: str, *, silent: bool) -> None:
        """Nothing was heard of a ready runner for a while; False: it speaks again."""

    def lost(self, runner: str, error: RunnerLost) -> None:
        """A ready runner is gone, with the cause as far as it is known."""

    def phase(self, runner: str, phase: str, detail: str) -> None:
        """A runner's boot moved on ("schedule", "pull", "start", ...), for people."""


class Backend(Protocol):
    """Provider of runners. Methods return at once unless they say otherwise."""

    def open(self, spec: PoolSpec, sink: Sink) -> None:
        """Prepare; called once, before the first boot.

        Raises:
            ConfigurationError: When this backend cannot serve here, and why.
        """

    def boot(self, runner: str) -> None:
        """Start one runner under this name, unique within the pool's instance.

        The backend opens the runner's first `spec.slots` slots by itself (numbered
        0 .. slots - 1) as soon as the runner is ready. It enforces
        `spec.boot_timeout`, standing still where `spec.scale_up_timeout` allows it,
        and says in the error what the boot was waiting for.
        """

    def open_slot(self, runner: str, slot: int) -> None:
        """Start a process for a slot whose predecessor ended."""

    def kill_slot(
        self, runner: str, slot: int, grace: float = KILL_GRACE_SECONDS
    ) -> None:
        """End a slot's process: SIGTERM, later SIGKILL; `slot_ended` follows.

        Asked again, the earlier SIGKILL counts.
        """

    def end(self, runner: str, grace: float = 0.0) -> None:
        """Let a runner finish for `grace` seconds, then end and delete it.

        Idempotent; a runner that is still booting is given up without a report.
        """

    def close(self, grace: float) -> None:
        """End every runner and everything the backend started; blocks until done.

        No process, pod, thread or descriptor of this backend remains afterwards.
        """

    def after_fork(self) -> None:
        """In a forked child: be as never opened.

        Runners and pods are the parent's and stay untouched; copies of sockets are
        closed without a word to their peers. Locks may be held by threads that do not
        exist here, so they are made anew.
        """

    def log_tail(self, runner: str, call: int) -> str:
        """Return the last lines that a call printed on a runner, as far as they came.

        Safe to print, of bounded length, "" where nothing is known; any thread may
        ask, also after `close`.
        """

    def describe(self) -> dict[str, Any]:
        """Facts for `pool.status()`: kind, address, image, ..."""
