"""Why a runner's pod went, or was never made: from what the API says to a named cause.

Pure: a pod as the API gives it in, a cause out. The kubelet's, scheduler's and API
server's own words go along, as they are what an operator searches for. Several things
are often true of one pod: a pod that ran out of memory is deleted afterwards, so what
came first is named, and what is most particular.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, replace
from typing import Any, Final

import kubetls
from flame_backend.backends.kubernetes.pod_template import RUNNER_CONTAINER
from flame_backend.errors import (
    AppImportError,
    AuthRefused,
    BootDenied,
    BootError,
    ContainerConfigError,
    QuotaExceeded,
    RunnerLost,
    VersionSkew,
)
from flame_backend.wire.text import clean

TEXT_CHARACTERS: Final = 1024
LOG_CHARACTERS: Final = 4096

# pod.status.reason of a pod that the kubelet or a controller ended.
_POD_REASONS: Final = {
    "Evicted": "Evicted",
    "Preempting": "Preempted",
    "NodeLost": "NodeLost",
    "NodeShutdown": "NodeLost",
    "Terminated": "NodeLost",
    "Shutdown": "NodeLost",
    "DeadlineExceeded": "DeadlineExceeded",
}

# Reasons of the condition DisruptionTarget (API reference of PodStatus).
_DISRUPTIONS: Final = {
    "PreemptionByScheduler": "Preempted",
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
}

# The kubelet did not take the pod that the scheduler sent: "OutOfcpu", "OutOfmemory".
_REJECTED: Final = re.compile(
    r"OutOf\w+|NodeAffinity|NodeName|NodePorts|TaintToleration|AppArmor|"
    r"UnexpectedAdmissionError|PodOSNotSupported|PodOSSelectorNodeLabelDoesNotMatch"
)

# Reasons of a container that never began to run.
_NOT_STARTED: Final = frozenset({"StartError", "ContainerCannotRun"})

# Exit codes of the runner's own first process: name, phase, error of a boot.
_OWN_CODES: Final[dict[int, tuple[str, str, type[BootError]]]] = {
    10: ("ParentUnreachable", "connect", BootError),
    11: ("Refused", "connect", AuthRefused),
    12: ("VersionSkew", "connect", VersionSkew),
    13: ("AppImportError", "import", AppImportError),
    14: ("ParentLost", "connect", BootError),
    15: ("Crashed", "import", BootError),
    64: ("ConfigError", "start", ContainerConfigError),
    143: ("Terminated", "start", BootError),
}

UNREACHABLE: Final = "ApiUnreachable"
UNRIGHTFUL: Final = frozenset({"Forbidden", "Unauthorized"})
"""Names of a refusal for want of a right, as against one for what the pod is."""

# What the API server says when it will not create a pod, whoever in it says so.
_REFUSALS: Final = (
    (re.compile(r"exceeded quota: "), "QuotaExceeded", QuotaExceeded),
    (re.compile(r"failed quota: "), "QuotaDenied", BootDenied),
    (re.compile(r"violates PodSecurity "), "PodSecurity", BootDenied),
    (
        re.compile(r"\b(?:maximum|minimum) \S+ usage per |limit to request ratio"),
        "LimitRange",
        BootDenied,
    ),
    (re.compile(r"ValidatingAdmissionPolicy '"), "AdmissionPolicy", BootDenied),
    (re.compile(r"admission webhook \".*\" denied"), "Webhook", BootDenied),
    (re.compile(r"failed calling webhook "), "Webhook", BootError),
    (re.compile(r"because it is being terminated"), "NamespaceTerminating", BootDenied),
    # A 403, too, of a server that has just started and not read its own caches yet.
    (re.compile(r"not yet ready to handle request"), "ApiNotReady", BootError),
    (re.compile(r" cannot \w+ resource "), "Forbidden", BootDenied),
)
_FINAL: Final = (
    kubetls.BadRequest,
    kubetls.Forbidden,
    kubetls.Invalid,
    kubetls.NotFound,
    kubetls.Unauthorized,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a runner did not come, or went.

    Attributes:
        name: One word: OOMKilled, Evicted, Preempted, NodeLost, Deleted, Crashed, ...
        words: One line, with the cluster's own words.
        phase: Where a boot was: create, schedule, pull, init, start, connect, import.
        kind: The error that a boot ends in.
        exit_code: Of the container, or None.
        signal: Number of the signal that ended it, or None.
        log_tail: Its last output, or "".
    """

    name: str
    words: str = ""
    phase: str = "start"
    kind: type[BootError] = BootError
    exit_code: int | None = None
    signal: int | None = None
    log_tail: str = ""

    def with_log(self, text: str) -> Cause:
        """Return the cause with the runner's last output."""
        return replace(self, log_tail=clean(text[-LOG_CHARACTERS:], LOG_CHARACTERS))

    def boot_error(self, runner: str) -> BootError:
        """Return what a boot ends in."""
        return self.kind(runner, self.phase, self.line(), self.log_tail)

    def lost(self, runner: str) -> RunnerLost:
        """Return what the calls of a runner end in."""
        detail = self.words
        if self.log_tail:
            detail = f"{detail}; its last output: {self.log_tail}"
        code, signal = self.exit_code, self.signal
        return RunnerLost(runner, self.name, detail, False, code, signal, self.log_tail)

    def line(self) -> str:
        """Return name and words in one line."""
        if self.words.startswith(self.name):
            return self.words
        return f"{self.name}: {self.words}" if self.words else self.name


def words_of(state: dict[str, Any], *, limit: int = TEXT_CHARACTERS) -> str:
    """Return reason and message of a status, condition or container state."""
    parts = [str(state.get(name) or "") for name in ("reason", "message")]
    text = ": ".join(part for part in parts if part)
    return clean(" ".join(text.split()), limit)


def refusal(error: kubetls.KubeTLSError) -> Cause:
    """Return why a pod was not created.

    Its kind is QuotaExceeded where room may come, BootDenied where nothing will
    change by itself, and BootError where the server may answer the next time.
    """
    if not isinstance(error, kubetls.ApiError):
        words = clean(str(error), TEXT_CHARACTERS)
        return Cause(name=UNREACHABLE, words=words, phase="create")
    text = clean(error.message, TEXT_CHARACTERS)
    for pattern, name, kind in _REFUSALS:
        if pattern.search(error.message):
            return Cause(name=name, words=text, phase="create", kind=kind)
    kind = BootDenied if isinstance(error, _FINAL) else BootError
    return Cause(name=error.reason, words=text, phase="create", kind=kind)


def end_of(pod: dict[str, Any]) -> Cause | None:
    """Return why a pod ended or is being ended; None when it is not."""
    status = pod.get("status") or {}
    ended = _terminated(status)
    if ended is not None and _came_first(ended, pod["metadata"]):
        return _container_end(ended)
    named = _pod_end(pod["metadata"], status)
    if named is not None:
        return replace(named, exit_code=None if ended is None else _code(ended))
    if ended is not None:
        return _container_end(ended)
    broken = _init_end(status)
    if broken is not None:
        return broken
    if status.get("phase") in {"Failed", "Succeeded"}:
        return Cause(name=str(status["phase"]), words=words_of(status))
    return None


def silence_of(pod: dict[str, Any]) -> Cause | None:
    """Return why nothing is heard of a runner whose pod still stands there as running.

    Runners have no probes: one whose container runs and which is not ready is on a
    node that has stopped reporting.
    """
    status = pod.get("status") or {}
    if status.get("phase") != "Running":
        return None
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Ready" and condition.get("status") != "True":
            node = (pod.get("spec") or {}).get("nodeName") or "its node"
            return Cause(name="NodeLost", words=f"{node} has stopped reporting")
    return None


def runner_state(status: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the runner's container, {} before there is one."""
    found = status.get("containerStatuses") or ()
    for container in found:
        if container.get("name") == RUNNER_CONTAINER:
            return container.get("state") or {}
    return {}


def _terminated(status: dict[str, Any]) -> dict[str, Any] | None:
    found: dict[str, Any] | None = runner_state(status).get("terminated")
    return found


def _came_first(ended: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """Say whether a container ended by itself, before anybody ended its pod."""
    if ended.get("reason") == "OOMKilled":
        return True
    deleted, finished = metadata.get("deletionTimestamp"), ended.get("finishedAt")
    if not deleted or not finished:
        return False
    # deletionTimestamp lies ahead by the grace that the pod was given.
    grace = dt.timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
    return _moment(finished) < _moment(deleted) - grace


def _moment(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def _pod_end(metadata: dict[str, Any], status: dict[str, Any]) -> Cause | None:
    """Return who ended the pod as a whole."""
    reason = str(status.get("reason") or "")
    if reason in _POD_REASONS:
        return Cause(name=_POD_REASONS[reason], words=words_of(status))
    if _REJECTED.fullmatch(reason):
        return Cause(name="RejectedByNode", words=words_of(status), phase="schedule")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and (
            condition.get("status") == "True"
        ):
            name = _DISRUPTIONS.get(condition.get("reason") or "", "Evicted")
            return Cause(name=name, words=words_of(condition))
    if metadata.get("deletionTimestamp"):
        return Cause(name="Deleted", words="its pod was deleted")
    return None


def _container_end(ended: dict[str, Any]) -> Cause:
    code, said = _code(ended), words_of(ended)
    how = f"exit code {code}"
    words = f"{how}; {said}" if said else how
    reason = ended.get("reason")
    if reason == "OOMKilled":
        words = f"{how}; its container needed more memory than its limit"
        return Cause(name="OOMKilled", words=words, exit_code=code, signal=9)
    if reason in _NOT_STARTED:
        return Cause(
            name="ConfigError", words=said, kind=ContainerConfigError, exit_code=code
        )
    if reason == "ContainerStatusUnknown":
        return Cause(name="NodeLost", words=words, exit_code=code)
    if code in _OWN_CODES:
        name, phase, kind = _OWN_CODES[code]
        return Cause(name=name, words=words, phase=phase, kind=kind, exit_code=code)
    if code == 0:
        return Cause(name="Exited", words=words, exit_code=0)
    number = _signal(ended, code)
    return Cause(name="Crashed", words=words, exit_code=code, signal=number)


def _code(ended: dict[str, Any]) -> int | None:
    code = ended.get("exitCode")
    return code if isinstance(code, int) else None


def _signal(ended: dict[str, Any], code: int | None) -> int | None:
    number = ended.get("signal")
    if isinstance(number, int) and number:
        return number
    # As shells have it: 128 and the signal's number.
    return code - 128 if code is not None and 128 < code <= 128 + 64 else None


def _init_end(status: dict[str, Any]) -> Cause | None:
    """Return which init container failed, of a pod that has failed with it.

    While the pod goes on it was a sidecar, which is started again.
    """
    if status.get("phase") != "Failed":
        return None
    for container in status.get("initContainerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended is None or not ended.get("exitCode"):
            continue
        name = clean(str(container.get("name")), 63)
        words = f"init container {name} ended with exit code {ended['exitCode']}"
        said = words_of(ended)
        return Cause(
            name="OOMKilled" if ended.get("reason") == "OOMKilled" else "InitContainer",
            words=f"{words}; {said}" if said else words,
            phase="init",
            exit_code=_code(ended),
            signal=_signal(ended, _code(ended)),
        )
    return None
