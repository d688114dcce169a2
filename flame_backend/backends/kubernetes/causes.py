"""Why a runner's pod does not come, or went: from its status to a named cause.

Pure: a pod as the API gives it in, a cause out. The kubelet's and scheduler's own
words go along, as they are what an operator searches for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from flame_backend.errors import (
    BootError,
    ContainerConfigError,
    ImagePullError,
    RunnerLost,
    Unschedulable,
)
from flame_backend.wire.text import clean

TEXT_CHARACTERS: Final = 1024

# Another try would meet the same; the kubelet repeats pulls, so those get time.
_CONFIG_REASONS: Final = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "InvalidImageName",
        "ErrImageNeverPull",
    }
)
_PULL_REASONS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"}
)
_NEVER_PULLED: Final = frozenset({"InvalidImageName", "ErrImageNeverPull"})


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a booting pod waits for.

    Attributes:
        phase: schedule, pull, init or start.
        reason: The cluster's words.
        kind: The error it becomes when the boot is given up.
        fatal_after: Seconds it may last; None for the whole boot_timeout.
    """

    phase: str
    reason: str
    kind: type[BootError]
    fatal_after: float | None = None


def waiting_for(pod: dict[str, Any]) -> Waiting | None:
    """Return what a pod waits for; None when its container runs."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if (
            condition.get("type") == "PodScheduled"
            and condition.get("status") != "True"
        ):
            text = _words(condition)
            return Waiting("schedule", text or "not scheduled", Unschedulable)
    for container in status.get("containerStatuses") or ():
        state = (container.get("state") or {}).get("waiting")
        if state is not None:
            return _waiting_container(state)
    if not status.get("containerStatuses"):
        scheduled = (pod.get("spec") or {}).get("nodeName")
        phase = "start" if scheduled else "schedule"
        return Waiting(phase, f"nothing known yet ({phase})", BootError)
    return None


def _waiting_container(state: dict[str, Any]) -> Waiting:
    reason = state.get("reason") or "ContainerCreating"
    text = _words(state)
    if reason in _NEVER_PULLED:
        return Waiting("pull", text, ImagePullError, fatal_after=0.0)
    if reason in _PULL_REASONS:
        # Registries fail for a moment; the third back-off comes within 30 s.
        return Waiting("pull", text, ImagePullError, fatal_after=30.0)
    if reason in _CONFIG_REASONS:
        # A ConfigMap or Secret may be created a moment after the pod.
        return Waiting("start", text, ContainerConfigError, fatal_after=5.0)
    return Waiting("start", text, BootError)


def loss(runner: str, pod: dict[str, Any] | None, detail: str) -> RunnerLost:
    """Return why a runner is gone, from its pod's last status.

    Args:
        runner: Its name.
        pod: Last known state; None when nothing is known.
        detail: What was seen on the link.
    """
    if pod is None:
        return RunnerLost(runner, "Unknown", detail, False)
    status = pod.get("status") or {}
    if status.get("reason") in {"Evicted", "Preempting", "NodeLost", "NodeShutdown"}:
        reason = "Preempted" if status["reason"] == "Preempting" else status["reason"]
        return RunnerLost(runner, reason, _words(status), False)
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget":
            known = {
                "PreemptionByScheduler": "Preempted",
                "EvictionByEvictionAPI": "Evicted",
            }
            reason = known.get(condition.get("reason", ""), "Deleted")
            return RunnerLost(runner, reason, _words(condition), False)
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended is not None and not (pod["metadata"].get("deletionTimestamp")):
            return _ended(runner, ended, detail)
    if pod["metadata"].get("deletionTimestamp"):
        return RunnerLost(runner, "Deleted", "its pod was deleted", False)
    return RunnerLost(runner, "Unknown", detail, False)


def _ended(runner: str, ended: dict[str, Any], detail: str) -> RunnerLost:
    code = ended.get("exitCode")
    number = ended.get("signal") or (code - 128 if code and code > 128 else None)
    reason = "OOMKilled" if ended.get("reason") == "OOMKilled" else "Crashed"
    words = ended.get("message") or detail
    text = f"exit code {code}; {clean(words, TEXT_CHARACTERS)}"
    return RunnerLost(runner, reason, text, False, code, number)


def ended_boot(runner: str, pod: dict[str, Any]) -> BootError | None:
    """Return the error of a pod that ended before it was ready; None if it has not."""
    status = pod.get("status") or {}
    if status.get("phase") not in {"Failed", "Succeeded"}:
        return None
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended is not None:
            words = clean(ended.get("message") or ended.get("reason") or "", 1024)
            text = f"its container ended with {ended.get('exitCode')}: {words}"
            return BootError(runner, "start", text)
    return BootError(runner, "start", _words(status) or "its pod failed")


def _words(state: dict[str, Any]) -> str:
    parts = [str(state.get(name) or "") for name in ("reason", "message")]
    return clean(": ".join(part for part in parts if part), TEXT_CHARACTERS)
