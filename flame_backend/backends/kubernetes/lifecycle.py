"""Each runner from the wish for it to its end: posted, watched, given up, told, gone.

Every boot ends in exactly one of ready, failed or (after `end`) silence, and every
ready runner in one loss, with a cause. Nothing here blocks: requests are made by
workers, moments are the hub's, and state is under one lock.

    booting    posted, and posted again while there is no room or no answer
    ready      the app is loaded; told to the pool
    gone       the control link ended; its pod has a moment to say why
    over       out of the books, its pod deleted; whatever comes later is ignored
"""

from __future__ import annotations

import logging
import math
import random
import secrets
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import kubetls
from flame_backend.backends.kubernetes.books import Runner
from flame_backend.backends.kubernetes.causes import (
    UNREACHABLE,
    UNRIGHTFUL,
    Cause,
    refusal,
    runner_state,
)
from flame_backend.backends.kubernetes.disposal import Remains
from flame_backend.backends.kubernetes.inquest import Inquest
from flame_backend.backends.kubernetes.pace import (
    CREATES_AT_ONCE,
    CREATES_PER_SECOND,
    SETTLE_SECONDS,
    pause_before,
)
from flame_backend.backends.kubernetes.pods import NONCE, PodsFull
from flame_backend.backends.kubernetes.waiting import (
    ADMITTED,
    FULL,
    BootClock,
    Waiting,
    waiting_for,
)
from flame_backend.errors import BootDenied, FlameError, RunnerLost
from flame_backend.wire.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from flame_backend.backends.base import Sink
    from flame_backend.backends.hub import Hub
    from flame_backend.backends.kubernetes.admission import Admission
    from flame_backend.backends.kubernetes.disposal import Disposal
    from flame_backend.backends.kubernetes.monitor import PodEvents
    from flame_backend.backends.kubernetes.pods import Pods
    from flame_backend.errors import BootError

    Step = Callable[[], None]

logger = logging.getLogger("flame_backend.kubernetes")

CAUSE_SECONDS: Final = 4.0
"""How long a lost runner's pod is given to show why; callers wait 5 s."""

LOOK_SECONDS: Final = 2.0
"""When nothing has been heard by then, the pod is looked up."""

EVENTS_SECONDS: Final = 5.0


class Lifecycle:
    """The runners of one pool.

    Args:
        pods: Their pods.
        events: Their pods' events.
        disposal: Deletes their pods.
        sink: Hears how each boot and each runner ends.
        admission: Is told which runners to expect.
        hub: Keeps the time, and their control links.
        manifest: Makes the pod of a runner; called once for each, before its POST.
        work: Runs a step in some thread that may block.
        keep_failed: Seconds for which pods that failed are kept.
    """

    def __init__(  # noqa: PLR0913 - the parts it holds together
        self,
        pods: Pods,
        events: PodEvents,
        disposal: Disposal,
        sink: Sink,
        admission: Admission,
        hub: Hub,
        *,
        manifest: Callable[[str], dict[str, Any]],
        work: Callable[[Step], None],
        keep_failed: float,
    ) -> None:
        self._pods = pods
        self._events = events
        self._disposal = disposal
        self._sink = sink
        self._manifest = manifest
        self._admission = admission
        self._inquest = Inquest(pods, admission)
        self._hub = hub
        self._work = work
        self._later = hub.after
        self._keep_failed = keep_failed
        self._creates = Bucket(CREATES_AT_ONCE, CREATES_PER_SECOND)
        self._lock = threading.Lock()
        self._runners: dict[str, Runner] = {}
        self._reading = False
        self._unreached = -math.inf

    def find(self, name: str) -> Runner | None:
        """Return a runner that is in the books."""
        with self._lock:
            return self._runners.get(name)

    def names(self) -> list[str]:
        """Return the runners in the books."""
        with self._lock:
            return list(self._runners)

    def addresses(self) -> frozenset[str]:
        """Return the addresses of all runners' pods that are known."""
        with self._lock:
            pods = [found.pod for found in self._runners.values() if found.pod]
        return frozenset(
            str(entry.get("ip"))
            for pod in pods
            for entry in (pod.get("status") or {}).get("podIPs") or ()
        )

    # ------------------------------------------------------------------ creation

    def boot(self, name: str, boot_timeout: float, scale_up_timeout: float) -> None:
        """Begin a boot."""
        now = time.monotonic()
        clock = BootClock(now, boot_timeout, scale_up_timeout)
        runner = Runner(name, secrets.token_hex(16), clock, now)
        with self._lock:
            self._runners[name] = runner
            pause = self._creates.spend(1, now)
            start_reading = not self._reading
            self._reading = True
        self._mind(runner)
        self._post_after(pause, runner)
        if start_reading:
            self._later(EVENTS_SECONDS, self._read_events)

    def _post_after(self, seconds: float, runner: Runner) -> None:
        def begin() -> None:
            self._work(lambda: self._post(runner))

        if seconds > 0:
            self._later(seconds, begin)
        else:
            begin()

    def _post(self, runner: Runner) -> None:
        """Create the pod; in a worker."""
        if runner.over:
            return
        try:
            if runner.manifest is None:
                runner.manifest = self._manifest(runner.name)
                runner.manifest["metadata"]["annotations"][NONCE] = runner.nonce
            runner.posts += 1
            runner.sent = True
            uid = self._pods.create(runner.manifest)
        except kubetls.KubeTLSError as error:
            asked = getattr(error, "retry_after", None)
            self._not_created(runner, refusal(error), asked)
        except PodsFull:
            self._not_created(runner, FULL, None)
        except FlameError as error:
            self.fail(runner, BootDenied(runner.name, "create", str(error)))
        except Exception as error:
            # Nothing will change by itself, and nobody reads what a worker says.
            logger.exception("%s is not posted", runner.name)
            words = f"its pod cannot be posted: {type(error).__name__}: {error}"
            self.fail(runner, BootDenied(runner.name, "create", words))
        else:
            self._created(runner, uid)

    def _created(self, runner: Runner, uid: str) -> None:
        with self._lock:
            runner.uid, runner.manifest = uid, None
            over = runner.over
        if over:
            # It was given up while its POST was under way.
            self._disposal.take(Remains(runner.name, runner.nonce, uid))
        else:
            self._admission.posted(runner.name, uid)

    def _not_created(self, runner: Runner, cause: Cause, asked: float | None) -> None:
        """Fail at once what nothing will change; else ask again while there is time.

        Its callers wait meanwhile: room comes when another pod goes, and an API
        server comes back.
        """
        now = time.monotonic()
        if cause.name == UNREACHABLE:
            self._unreached = now
        settling = now - self._unreached < SETTLE_SECONDS and cause.name in UNRIGHTFUL
        if cause.kind is BootDenied and not settling:
            self.fail(runner, cause.boot_error(runner.name))
            return
        self._observe(runner, Waiting(cause))
        self._post_after(pause_before(runner.posts, asked, random.random()), runner)  # noqa: S311 - jitter

    # ------------------------------------------------------------------ boot

    def admitted(self, name: str) -> Runner | None:
        """The runner has proved who it is; None when nobody waits for it."""
        runner = self.find(name)
        if runner is not None:
            self._observe(runner, ADMITTED)
        return runner

    def ready(self, name: str) -> Runner | None:
        """The app is loaded; None when nobody waits for it any more."""
        with self._lock:
            runner = self._runners.get(name)
            if runner is not None:
                runner.ready = True
            return runner

    def _observe(self, runner: Runner, state: Waiting) -> None:
        """The boot waits for this now."""
        with self._lock:
            if runner.over or runner.ready:
                return
            if runner.state is ADMITTED:
                # Its pod's status comes after what it says itself.
                return
            changed = runner.state is None or runner.state.cause != state.cause
            runner.observe(state, time.monotonic())
        if changed:
            self._sink.phase(runner.name, state.cause.phase, state.cause.words)
        self._mind(runner)

    def _mind(self, runner: Runner) -> None:
        """See that the boot is judged when its clock says so."""
        with self._lock:
            now = time.monotonic()
            at = runner.clock.next_look(now)
            if at >= runner.look_at:
                return
            runner.look_at = at
        self._later(at - now, lambda: self._judge(runner, at))

    def _judge(self, runner: Runner, at: float) -> None:
        with self._lock:
            if runner.over or runner.ready or runner.look_at != at:
                return
            runner.look_at = math.inf
            cause = runner.clock.verdict(time.monotonic())
        if cause is None:
            self._mind(runner)
        else:
            self._work(lambda: self._give_up(runner, cause))

    def _give_up(self, runner: Runner, cause: Cause) -> None:
        """Fail a boot for what it waited for too long; in a worker."""
        if cause.phase in {"connect", "import"}:
            cause = self._inquest.explained(runner, cause)
        if not runner.ready:  # it may have come while that was asked
            self.fail(runner, cause.boot_error(runner.name))

    def fail(self, runner: Runner, error: BootError) -> None:
        """End a boot, once, with its error; one that was ready is lost: calls run."""
        if not self._take(runner):
            return
        self._hub.drop(runner.name)
        self._dispose(runner, failed=True)
        if runner.ready:
            how = f"the app failed to load again: {error.reason}"
            self._sink.lost(runner.name, RunnerLost(runner.name, "Crashed", how))
        else:
            self._sink.boot_failed(runner.name, error)

    # ------------------------------------------------------------------ pods

    def pod_changed(self, name: str, pod: dict[str, Any], removed: bool) -> None:  # noqa: FBT001 - a callback's
        """A pod changed or is gone; in the monitor's thread."""
        runner = self.find(name)
        if runner is None:
            self._stray(name, pod, removed=removed)
            return
        if runner.uid not in {None, pod["metadata"]["uid"]}:
            return
        with self._lock:
            runner.pod, runner.removed = pod, removed
        self._sum_up(runner)

    def _stray(self, name: str, pod: dict[str, Any], *, removed: bool) -> None:
        """Delete a pod that came of a POST whose answer was lost, and too late."""
        metadata = pod["metadata"]
        uid = metadata["uid"]
        if removed:
            self._disposal.gone(uid)
        if removed or metadata.get("deletionTimestamp"):
            return
        if not self._disposal.knows(name, uid) and self._pods.is_ours(pod):
            self._disposal.take(Remains(name, "", uid))

    def _sum_up(self, runner: Runner) -> None:
        """Draw conclusions from what is known of a runner's pod."""
        if runner.ready and runner.gone is None:
            # It may be draining; its link says when it ends.
            return
        cause = runner.end()
        if cause is not None:
            self._work(lambda: self._ended(runner, cause))
        elif not runner.ready and runner.pod is not None:
            self._observe(runner, waiting_for(runner.pod, runner.events))

    def _read_events(self) -> None:
        """Have the events of all booting pods read, while there are any."""
        with self._lock:
            booting = {
                runner.uid: runner
                for runner in self._runners.values()
                if runner.uid and not runner.ready and runner.state is not ADMITTED
            }
            self._reading = any(not found.ready for found in self._runners.values())
            reading = self._reading and self._events.allowed
        if booting:
            self._work(lambda: self._join_events(booting))
        if reading:
            self._later(EVENTS_SECONDS, self._read_events)

    def _join_events(self, booting: dict[str, Runner]) -> None:
        for uid, found in self._events.of(booting.keys()).items():
            booting[uid].events = found
            self._sum_up(booting[uid])

    # ------------------------------------------------------------------ ends

    def gone(self, name: str, reason: str) -> None:
        """The control link ended: its pod has a moment to say why."""
        runner = self.find(name)
        if runner is None or runner.gone is not None:
            return
        runner.gone = reason
        self._later(LOOK_SECONDS, lambda: self._work(lambda: self._look_up(runner)))
        self._later(
            CAUSE_SECONDS, lambda: self._tell(runner, self._inquest.of_silence(runner))
        )
        self._sum_up(runner)

    def _look_up(self, runner: Runner) -> None:
        """Ask what the watch has not said; in a worker."""
        if runner.over or not self._inquest.see_pod(runner):
            return
        self._sum_up(runner)
        if runner.end() is None:
            self._inquest.ask_kubelet(runner)

    def _ended(self, runner: Runner, cause: Cause) -> None:
        """Tell of a pod that says why it ended; in a worker."""
        if runner.over:
            return
        if cause.name not in {"Deleted", "NodeLost", "RejectedByNode"}:
            cause = self._inquest.explained(runner, cause)
        self._tell(runner, cause)

    def _tell(self, runner: Runner, cause: Cause) -> None:
        """Tell of an end, once, and see to the pod."""
        if not self._take(runner):
            return
        if runner.gone and cause.name == "Crashed":
            cause = replace(cause, words=f"{cause.words}; {runner.gone}")
        self._hub.drop(runner.name)
        self._dispose(runner, failed=cause.name != "Deleted")
        if runner.ready:
            self._sink.lost(runner.name, cause.lost(runner.name))
        else:
            self._sink.boot_failed(runner.name, cause.boot_error(runner.name))

    def end(self, name: str, grace: float) -> bool:
        """Take a runner out, without a word to the pool; False when it is not in."""
        runner = self.find(name)
        if runner is None or not self._take(runner):
            return False
        self._dispose(runner, failed=False, grace=grace)
        return True

    def _take(self, runner: Runner) -> bool:
        with self._lock:
            if runner.over:
                return False
            runner.over = True
            self._runners.pop(runner.name, None)
        self._admission.forget(runner.name)
        return True

    def _dispose(self, runner: Runner, *, failed: bool, grace: float = 0.0) -> None:
        """Have the pod deleted; one that failed may be kept, if it does not run."""
        with self._lock:
            if not runner.sent or runner.removed:
                return
            remains = Remains(
                runner.name, runner.nonce, runner.uid, math.ceil(grace) + 1
            )
            state = runner_state((runner.pod or {}).get("status") or {})
        # One that waits for a node would have the autoscaler add it.
        keeps = failed and runner.node and state.get("running") is None
        self._disposal.take(remains, self._keep_failed if keeps else 0.0)
