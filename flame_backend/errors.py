"""Every error flame_backend raises, in one tree under `FlameError`.

Three questions order the tree: could a runner be had (`BootError`), did the runner
stay (`RunnerLost`), did the call end well (`CallError`). Refusals that happen in the
caller's own process before anything is sent stand beside them. Attributes carry data
and go positionally to the base class; errors pickle and come back; no text holds a
token, a key or a payload. This module imports nothing of ours.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import concurrent.futures
    from typing import Any


class FlameError(Exception):
    """Root of every error of this package.

    Attributes:
        call: `CallInfo` of the affected call, or None when no call was involved.
    """

    call: Any = None

    def __init__(self, *args: Any) -> None:
        # Not super(): OSError, a base of the timeout classes, would take the second
        # to fifth argument for errno, strerror and file names and drop them.
        BaseException.__init__(self, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from class, arguments and attributes."""
        return _rebuild, (type(self), self.args), self.__dict__ or None


def _rebuild(cls: type[FlameError], args: tuple[Any, ...]) -> FlameError:
    error = cls.__new__(cls, *args)
    error.args = args
    cls.__init__(error, *args)
    return error


class ConfigurationError(FlameError, ValueError):
    """An option, manifest or environment variable breaks a rule.

    Attributes:
        field: The option, the field's path in the manifest, or the variable.
        reason: The rule and the remedy.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class ManifestError(ConfigurationError):
    """The runner manifest cannot be made into a pod we would post."""


class ParentError(FlameError):
    """A runner's FLAME_PARENT variable is absent where needed, or malformed."""


# ------------------------------------------------------------------ boot


class BootError(FlameError):
    """A runner could not be had.

    Attributes:
        runner: Name of the runner (in a cluster, of its pod).
        phase: create, schedule, pull, init, start, connect, admit or import.
        reason: The cause, in one line, with the cluster's own words.
        log_tail: Last output of the runner, escaped and shortened, or "".
    """

    def __init__(
        self, runner: str, phase: str, reason: str, log_tail: str = ""
    ) -> None:
        super().__init__(runner, phase, reason, log_tail)
        self.runner = runner
        self.phase = phase
        self.reason = reason
        self.log_tail = log_tail

    def __str__(self) -> str:
        tail = f"; its last output: {self.log_tail}" if self.log_tail else ""
        return f"runner {self.runner} did not boot ({self.phase}): {self.reason}{tail}"


class BootTimeout(BootError, TimeoutError):
    """The runner was not ready within boot_timeout; `reason` says what was missing."""


class BootDenied(BootError):
    """The API server refused the pod for good (RBAC, admission, validation)."""


class QuotaExceeded(BootError):
    """A ResourceQuota leaves no room for the pod."""


class ImagePullError(BootError):
    """The runner's image cannot be had."""


class Unschedulable(BootError):
    """No node takes the pod."""


class ContainerConfigError(BootError):
    """The kubelet cannot make the container (missing Secret or key, bad command)."""


class AppImportError(BootError):
    """The app's code failed to import on the runner; `log_tail` holds the traceback."""


class VersionSkew(BootError):
    """Parent and runner are not the same Python or the same flame_backend."""


class AuthRefused(BootError):
    """A peer dialled in and could not prove that it is this runner."""


# ------------------------------------------------------------------ runner and call


class RunnerLost(FlameError):
    """The runner or its slot ended while it held the call.

    Attributes:
        runner: Name of the runner.
        reason: OOMKilled, Evicted, Preempted, NodeLost, Deleted, Crashed, Unknown, ...
        detail: One line: exit code or signal, the cluster's message.
        started: True when the function may have run (its request was sent in full).
        exit_code: Exit code of the process, or None.
        signal: Signal number that ended the process, or None.
        log_tail: Last output of the call, or of its runner where that is all there
            is; escaped and shortened, or "".
    """

    def __init__(
        self,
        runner: str,
        reason: str,
        detail: str,
        started: bool = True,
        exit_code: int | None = None,
        signal: int | None = None,
        log_tail: str = "",
    ) -> None:
        super().__init__(runner, reason, detail, started, exit_code, signal, log_tail)
        self.runner = runner
        self.reason = reason
        self.detail = detail
        self.started = started
        self.exit_code = exit_code
        self.signal = signal
        self.log_tail = log_tail

    def seen_by_call(self, *, started: bool, log_tail: str = "") -> RunnerLost:
        """Return the same loss for one of the runner's calls, and what it printed."""
        _, reason, detail, _, exit_code, signal, tail = self.args
        tail = log_tail or tail
        return RunnerLost(self.runner, reason, detail, started, exit_code, signal, tail)

    def __str__(self) -> str:
        when = "while it ran the call" if self.started else "before the call started"
        return f"runner {self.runner} was lost {when}: {self.reason} ({self.detail})"


class CallError(FlameError):
    """One call ended without a result; its runner may live on."""


class CallCrashed(CallError):
    """The slot process that ran the call died; the runner lives on.

    Attributes:
        runner: Name of the runner.
        exit_code: Exit code of the slot process, or None.
        signal: Signal number that ended it, or None.
        detail: One line about what is known.
    """

    def __init__(
        self,
        runner: str,
        exit_code: int | None = None,
        signal: int | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(runner, exit_code, signal, detail)
        self.runner = runner
        self.exit_code = exit_code
        self.signal = signal
        self.detail = detail

    def __str__(self) -> str:
        how = (
            f"signal {self.signal}"
            if self.signal is not None
            else f"exit code {self.exit_code}"
        )
        more = f"; {self.detail}" if self.detail else ""
        return f"the process running the call on {self.runner} ended with {how}{more}"


class CallTimeout(CallError, TimeoutError):
    """A call's clock ran out.

    Attributes:
        phase: "queue" (no slot came free in queue_timeout) or "run" (timeout).
        seconds: The limit that ran out.
    """

    def __init__(self, phase: str, seconds: float) -> None:
        super().__init__(phase, seconds)
        self.phase = phase
        self.seconds = seconds

    def __str__(self) -> str:
        clock = "queue_timeout" if self.phase == "queue" else "timeout"
        return f"the call's {clock} of {self.seconds:g} s ran out ({self.phase})"


if TYPE_CHECKING:

    class CallCancelled(CallError, concurrent.futures.CancelledError):
        """The call was cancelled, by its caller or by shutdown of the pool."""

else:

    def __getattr__(name: str) -> Any:
        # Its second base loads logging and threads, 10 ms that every runner would
        # wait for before it says HELLO; so the class is made when it is first named.
        if name != "CallCancelled":
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        import concurrent.futures

        class CallCancelled(CallError, concurrent.futures.CancelledError):
            """The call was cancelled, by its caller or by shutdown of the pool."""

        CallCancelled.__qualname__ = "CallCancelled"
        return globals().setdefault("CallCancelled", CallCancelled)


class RemoteError(CallError):
    """The called function raised; this is what crossed the wire.

    It stands alone when the exception's class is not rebuilt here, being neither
    builtin nor in the pool's `result_types`, and is the `__cause__` of the rebuilt
    exception otherwise.

    Attributes:
        type_name: Qualified name of the exception's class, as text.
        message: str() of the exception.
        traceback_text: The formatted traceback from the runner, escaped.
    """

    def __init__(self, type_name: str, message: str, traceback_text: str = "") -> None:
        super().__init__(type_name, message, traceback_text)
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        head = f"{self.type_name}: {self.message}" if self.message else self.type_name
        return f"{head}\n\n{self.traceback_text}" if self.traceback_text else head


# ------------------------------------------------------------------ refusals


class PoolError(FlameError):
    """The pool cannot take the call."""


class PoolClosed(PoolError, RuntimeError):
    """The pool was shut down (RuntimeError, as concurrent.futures has it)."""


class PoolSaturated(PoolError):
    """max_queue callers are waiting already."""


class NestedCallError(PoolError):
    """A runner tried to use a pool of its own, which would boot runners of runners."""


class NotSerializable(FlameError, TypeError):
    """An argument or the function cannot be sent; the text names it."""


class ResultNotSerializable(CallError, TypeError):
    """The function's result cannot travel as data.

    The text names the type, where it sits in the result, and the remedy.
    """


class PayloadTooLarge(FlameError, ValueError):
    """A request or result is larger than its limit.

    Attributes:
        what: "request" or "result".
        size_bytes: Its size, or the size at which it was given up.
        limit_bytes: The limit that it breaks (max_payload or max_result).
    """

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(what, size_bytes, limit_bytes)
        self.what = what
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        option = "max_payload" if self.what == "request" else "max_result"
        return (
            f"the {self.what} has {self.size_bytes} bytes, {option} allows "
            f"{self.limit_bytes}; raise {option} or pass a reference to the data"
        )


# ------------------------------------------------------------------ link


class LinkError(FlameError):
    """A connection between parent and runner failed."""


class LinkClosed(LinkError):
    """The peer ended the connection."""


class LinkUnauthenticated(LinkError):
    """The peer did not prove who it is."""


class MalformedFrame(LinkError):
    """The peer sent bytes that are no frame of ours, or one over its limit."""
