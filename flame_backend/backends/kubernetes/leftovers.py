"""Which runner pods are left over, and which of those may be taken away. Pure."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.kubernetes.refusals import BOOT_TIMEOUT, KEEP_FAILED

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTLE_SECONDS: Final = 10.0
"""A sibling process may still be reading why its runner ended."""


def may_be_swept(pod: dict[str, Any], now: dt.datetime) -> bool:
    """Say whether a pod that is another process' may be deleted."""
    return is_left_over(pod, now) and is_settled(pod, now) and not is_kept(pod, now)


def is_left_over(pod: dict[str, Any], now: dt.datetime) -> bool:
    """Say whether a pod has ended, or is Pending beyond every time it had."""
    phase = (pod.get("status") or {}).get("phase")
    if phase != "Pending":
        return phase in {"Failed", "Succeeded"}
    limit = _seconds(pod, BOOT_TIMEOUT)
    return limit is not None and now - _made(pod) > limit


def is_settled(pod: dict[str, Any], now: dt.datetime) -> bool:
    """Say whether no container of a pod has ended only a moment ago."""
    settling = dt.timedelta(seconds=SETTLE_SECONDS)
    return all(now - moment >= settling for moment in _ends(pod))


def is_kept(pod: dict[str, Any], now: dt.datetime) -> bool:
    """Say whether its process keeps a pod for a look, with the option keep_failed.

    From the last thing that is known to have happened to it; one that is Pending is
    given up at its boot_timeout at the latest.
    """
    keep = _seconds(pod, KEEP_FAILED)
    if keep is None:
        return False
    status = pod.get("status") or {}
    ages = [now - moment for moment in (_made(pod), *_ends(pod), *_changes(status))]
    if status.get("phase") == "Pending":
        ages.append(now - _made(pod) - (_seconds(pod, BOOT_TIMEOUT) or dt.timedelta()))
    return min(ages) < keep


def _made(pod: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(pod["metadata"]["creationTimestamp"])


def _ends(pod: dict[str, Any]) -> Iterator[dt.datetime]:
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("finishedAt"):
            yield dt.datetime.fromisoformat(ended["finishedAt"])


def _changes(status: dict[str, Any]) -> Iterator[dt.datetime]:
    for condition in status.get("conditions") or ():
        if condition.get("lastTransitionTime"):
            yield dt.datetime.fromisoformat(condition["lastTransitionTime"])


def _seconds(pod: dict[str, Any], annotation: str) -> dt.timedelta | None:
    """Return an annotation's time; None where it is absent or none."""
    try:
        seconds = float((pod["metadata"].get("annotations") or {})[annotation])
        return dt.timedelta(seconds=seconds)
    except (KeyError, ValueError, OverflowError):
        return None
