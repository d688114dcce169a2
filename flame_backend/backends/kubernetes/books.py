"""What is known of one runner, from the wish for it to its end. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flame_backend.backends.kubernetes.causes import Cause, end_of

if TYPE_CHECKING:
    from flame_backend.backends.kubernetes.waiting import BootClock, Waiting


class Runner:
    """One runner in the books.

    Args:
        name: Its name and its pod's.
        nonce: Of its POST.
        clock: Of its boot.
        now: The moment it was asked for.

    Attributes:
        manifest: Its pod to post, made once; None again when it is there.
        sent: It was posted at least once, so that there may be a pod.
        posts: How often.
        uid: Of its pod; None until a POST was answered.
        pod: Its pod as last seen.
        removed: The pod is gone, and `pod` its last state.
        events: Its pod's events, as far as they may be read.
        state: What its boot waits for.
        phases: What it waited for so far, with the moments at which that began.
        ready: It was reported to the pool.
        gone: What was seen when its control link ended; None while it stands.
        mute: Its kubelet was asked, and has not answered.
        look_at: When its boot is judged next.
        over: It is out of the books; whatever comes later is ignored.
    """

    __slots__ = (
        "clock", "events", "gone", "look_at", "manifest", "mute", "name", "nonce",
        "over", "phases", "pod", "posts", "ready", "removed", "sent", "started",
        "state", "uid",
    )  # fmt: skip

    def __init__(self, name: str, nonce: str, clock: BootClock, now: float) -> None:
        self.name = name
        self.clock = clock
        self.started = now
        self.nonce = nonce
        self.manifest: dict[str, Any] | None = None
        self.sent = False
        self.posts = 0
        self.uid: str | None = None
        self.pod: dict[str, Any] | None = None
        self.removed = False
        self.events: list[dict[str, Any]] = []
        self.state: Waiting | None = None
        self.phases: list[tuple[str, float]] = [("create", now)]
        self.ready = False
        self.gone: str | None = None
        self.mute = False
        self.look_at = math.inf
        self.over = False

    @property
    def node(self) -> str:
        """Name of its node, "" while there is none."""
        return str(((self.pod or {}).get("spec") or {}).get("nodeName") or "")

    def observe(self, state: Waiting, now: float) -> None:
        """Its boot waits for this now."""
        self.state = state
        self.clock.observe(state, now)
        if state.cause.phase != self.phases[-1][0]:
            self.phases.append((state.cause.phase, now))

    def durations(self, now: float) -> tuple[tuple[str, float], ...]:
        """Return the phases before its app was loaded, in order, with their seconds."""
        ends = [began for _, began in self.phases[1:]] + [now]
        return tuple(
            (phase, end - began)
            for (phase, began), end in zip(self.phases, ends, strict=True)
            if phase != "import"
        )

    def end(self) -> Cause | None:
        """Return why it ended, as far as its pod says."""
        cause = end_of(self.pod) if self.pod is not None else None
        if cause is None and self.removed:
            return Cause(name="Deleted", words="its pod is gone")
        return cause
