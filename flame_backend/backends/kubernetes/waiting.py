"""What a booting pod waits for, and how long it may.

Pure. A pod that waits for a node that is being added, or for its image, is on its way:
its clock stands still meanwhile. A pod whose image or configuration cannot be had is
given up early; an unschedulable one has the whole time, as another pod may go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.kubernetes.causes import Cause, runner_state, words_of
from flame_backend.errors import (
    BootError,
    BootTimeout,
    ContainerConfigError,
    ImagePullError,
    QuotaExceeded,
    Unschedulable,
)
from flame_backend.wire.text import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

PULL_SECONDS: Final = 30.0
PULL_BACKOFFS: Final = 3
"""Registries fail for a moment: an image is given up at its third back-off, or then."""

CONFIG_SECONDS: Final = 5.0
"""A ConfigMap or Secret may be created a moment after the pod that names it."""

_NEVER_PULLED: Final = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_BACKOFF: Final = "ImagePullBackOff"
_AGAIN: Final = "CrashLoopBackOff"
_PULL: Final = frozenset(
    {
        "ErrImagePull",
        _BACKOFF,
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_CONFIG: Final = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "PreCreateHookError",
        "PreStartHookError",
    }
)

# Events of the autoscaler (the first two) and of Karpenter; the last one counts.
_NODE_COMES: Final = frozenset({"TriggeredScaleUp", "Nominated"})
_NO_NODE_COMES: Final = frozenset({"NotTriggerScaleUp", "FailedScaleUp"})

# Events whose story no status tells: the container is "creating", and that is all.
_TOLD_BY_EVENTS: Final = {
    "FailedMount": "VolumeMount",
    "FailedAttachVolume": "VolumeMount",
    "FailedCreatePodSandBox": "PodSandbox",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a pod waits for.

    Attributes:
        cause: What it becomes when the boot is given up for it.
        patience: Seconds it may last; None for the whole boot_timeout.
        still: The boot clock stands still.
        backoff: The kubelet pauses before it tries the image again.
    """

    cause: Cause
    patience: float | None = None
    still: bool = False
    backoff: bool = False


FULL: Final = Cause(
    name="MaxPods",
    words="max_pods runner pods of this pod exist",
    phase="create",
    kind=QuotaExceeded,
)
ADMITTED: Final = Waiting(
    Cause(name="NotReady", words="connected, the app is being loaded", phase="import")
)


def waiting_for(pod: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> Waiting:
    """Return what a pod that has not ended waits for.

    Args:
        pod: As the API gives it.
        events: Its events, oldest first, as far as they may be read.
    """
    status = pod.get("status") or {}
    if not (pod.get("spec") or {}).get("nodeName"):
        return _unscheduled(status, events)
    for container in status.get("initContainerStatuses") or ():
        found = _init(container)
        if found is not None:
            return found
    state = runner_state(status)
    if state.get("running") is not None:
        words = "its container runs and has not connected"
        return Waiting(Cause(name="NotConnected", words=words, phase="connect"))
    waiting = state.get("waiting") or {}
    trouble = _trouble(waiting)
    return trouble or _creating(status, waiting, events)


def _unscheduled(status: dict[str, Any], events: Sequence[dict[str, Any]]) -> Waiting:
    words = "the scheduler has not seen it yet"
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled":
            words = words_of(condition) or words
    coming = _last(events, _NODE_COMES | _NO_NODE_COMES)
    still = bool(status.get("nominatedNodeName"))
    if coming is not None:
        still = still or coming["reason"] in _NODE_COMES
        words = f"{words}; {words_of(coming)}"
    cause = Cause(
        name="Unschedulable", words=words, phase="schedule", kind=Unschedulable
    )
    return Waiting(cause, still=still)


def _init(container: dict[str, Any]) -> Waiting | None:
    state = container.get("state") or {}
    name = clean(str(container.get("name")), 63)
    if state.get("running") is not None and not container.get("started"):
        words = f"init container {name} runs"
        return Waiting(Cause(name="InitContainer", words=words, phase="init"))
    waiting = state.get("waiting") or {}
    if waiting.get("reason") == _AGAIN:  # a sidecar; others fail their pod
        words = f"init container {name}: {words_of(waiting)}"
        return Waiting(Cause(name="InitContainer", words=words, phase="init"))
    return _trouble(waiting, f"init container {name}: ")


def _trouble(state: dict[str, Any], prefix: str = "") -> Waiting | None:
    """Return what keeps a container from being made, None when nothing does."""
    reason = str(state.get("reason") or "")
    words = prefix + words_of(state)
    if reason in _NEVER_PULLED:
        cause = Cause(name=reason, words=words, phase="pull", kind=ImagePullError)
        return Waiting(cause, 0.0)
    if reason in _PULL:
        cause = Cause(name="ImagePull", words=words, phase="pull", kind=ImagePullError)
        return Waiting(cause, PULL_SECONDS, backoff=reason == _BACKOFF)
    if reason in _CONFIG:
        kind = ContainerConfigError
        return Waiting(
            Cause(name="ConfigError", words=words, kind=kind), CONFIG_SECONDS
        )
    return None


def _creating(
    status: dict[str, Any], state: dict[str, Any], events: Sequence[dict[str, Any]]
) -> Waiting:
    """Return what goes on before there is a container: sandbox, volumes, image."""
    told = _last(events, frozenset(_TOLD_BY_EVENTS))
    pulling = _last(events, frozenset({"Pulling", "Pulled", "Failed"}))
    # Network and volumes are there, the container is not: its image is being pulled,
    # unless its events tell more.
    ready = any(
        condition.get("type") == "PodReadyToStartContainers"
        and condition.get("status") == "True"
        for condition in status.get("conditions") or ()
    )
    is_pulling = ready if pulling is None else pulling["reason"] == "Pulling"
    if is_pulling:
        words = "its image is being pulled" if pulling is None else words_of(pulling)
        cause = Cause(name="ImagePull", words=words, phase="pull", kind=BootTimeout)
        return Waiting(cause, still=True)
    if told is not None and not ready:
        name = _TOLD_BY_EVENTS[told["reason"]]
        return Waiting(Cause(name=name, words=words_of(told)))
    words = words_of(state) or "its node has not begun with it"
    return Waiting(Cause(name="ContainerCreating", words=words))


def _last(
    events: Sequence[dict[str, Any]], reasons: frozenset[str]
) -> dict[str, Any] | None:
    found = [event for event in events if event.get("reason") in reasons]
    return found[-1] if found else None


class BootClock:
    """How much of its time a boot has used, and whether it is to be given up.

    Args:
        now: The moment it was asked for.
        boot_timeout: Seconds it may take, standing still aside.
        scale_up_timeout: Seconds the clock may stand still in all.
    """

    def __init__(
        self, now: float, boot_timeout: float, scale_up_timeout: float
    ) -> None:
        self._boot_timeout = boot_timeout
        self._scale_up_timeout = scale_up_timeout
        self._started = now
        self._seen = now
        self._stood = 0.0
        self._state: Waiting | None = None
        self._trouble_since: float | None = None
        self._backoffs = 0

    def observe(self, state: Waiting, now: float) -> None:
        """The pod waits for this, now."""
        self._pass(now)
        before, self._state = self._state, state
        if state.patience is None:
            self._trouble_since = None
            self._backoffs = 0
            return
        if self._trouble_since is None:
            self._trouble_since = now
        if state.backoff and not (before is not None and before.backoff):
            self._backoffs += 1

    def verdict(self, now: float) -> Cause | None:
        """Return the cause to give the boot up for; None to go on."""
        self._pass(now)
        state = self._state
        if state is not None and self._lasted_too_long(state, now):
            return state.cause
        if now < self._deadline:
            return None
        return self._timed_out(state)

    def next_look(self, now: float) -> float:
        """Return the moment to ask for a verdict again, if nothing is observed."""
        moments = [self._deadline]
        state = self._state
        if state is not None and state.patience is not None:
            moments.append((self._trouble_since or now) + state.patience)
        if state is not None and state.still:
            # It stands still for what is left of that, and then for boot_timeout's.
            moments[0] += max(0.0, self._scale_up_timeout - self._stood)
        return max(now, min(moments))

    def _pass(self, now: float) -> None:
        """Account for the time since the last look."""
        if self._state is not None and self._state.still:
            self._stood += now - self._seen
        self._seen = now

    @property
    def _deadline(self) -> float:
        stood = min(self._stood, self._scale_up_timeout)
        return self._started + self._boot_timeout + stood

    def _lasted_too_long(self, state: Waiting, now: float) -> bool:
        if state.patience is None or self._trouble_since is None:
            return False
        lasted = now - self._trouble_since >= state.patience
        return lasted or self._backoffs >= PULL_BACKOFFS

    def _timed_out(self, state: Waiting | None) -> Cause:
        limit = f"not ready in {self._boot_timeout:g} s"
        if self._stood:
            stood = min(self._stood, self._scale_up_timeout)
            limit = f"{limit} and {stood:.0f} s for a node or an image"
        if state is None:
            words = f"{limit}: nothing was heard of its pod"
            return Cause(
                name="BootTimeout", words=words, phase="create", kind=BootTimeout
            )
        cause = state.cause
        kind = BootTimeout if cause.kind is BootError else cause.kind
        return Cause(
            name=cause.name,
            words=f"{limit}: {cause.words}",
            phase=cause.phase,
            kind=kind,
        )
