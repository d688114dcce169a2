"""Causes: what the API says of a pod, and the name that callers hear.

The pods are cut from what real kubelets (1.27 to 1.36) write, down to what is read.
"""

from __future__ import annotations

from typing import Any

import pytest

import kubetls
from flame_backend.backends.kubernetes.causes import Cause, end_of, refusal, silence_of
from flame_backend.errors import (
    AppImportError,
    AuthRefused,
    BootDenied,
    BootError,
    ContainerConfigError,
    QuotaExceeded,
    VersionSkew,
)
from tests.runner_pods import READY, SCHEDULED, disrupted, ended, pod, waits

# deletionTimestamp lies the grace ahead: these were deleted at 10:00:20 and 10:00:05.
DELETED_AFTER = {
    "deletionTimestamp": "2026-03-01T10:00:50Z",
    "deletionGracePeriodSeconds": 30,
}
DELETED_BEFORE = {
    "deletionTimestamp": "2026-03-01T10:00:35Z",
    "deletionGracePeriodSeconds": 30,
}
EVICTED = (
    "The node was low on resource: memory. Threshold quantity: 100Mi, available: "
    "62Mi. Container flame-runner was using 1Gi, request is 0, has larger consumption."
)

ENDS: dict[str, tuple[dict[str, Any], str, int | None, int | None, str]] = {
    "out of memory": (
        pod(ended(137, "OOMKilled"), phase="Failed"),
        "OOMKilled", 137, 9, "more memory than its limit",
    ),
    "out of memory, then deleted": (
        pod(ended(137, "OOMKilled"), metadata=DELETED_BEFORE),
        "OOMKilled", 137, 9, "exit code 137",
    ),
    "killed": (pod(ended(137), phase="Failed"), "Crashed", 137, 9, "exit code 137"),
    "segmentation fault": (pod(ended(139)), "Crashed", 139, 11, "exit code 139"),
    "signal named by the runtime": (pod(ended(1, signal=6)), "Crashed", 1, 6, "Error"),
    "exit code": (
        pod(ended(3, message="disk full")), "Crashed", 3, None, "disk full",
    ),
    "exit code beyond signals": (pod(ended(255)), "Crashed", 255, None, "255"),
    "ended by itself": (
        pod(ended(0, "Completed"), phase="Succeeded"), "Exited", 0, None, "Completed",
    ),
    "parent not reached": (
        pod(ended(10, message="the parent cannot be reached")),
        "ParentUnreachable", 10, None, "cannot be reached",
    ),
    "parent lost": (pod(ended(14)), "ParentLost", 14, None, "exit code 14"),
    "asked to end": (pod(ended(143)), "Terminated", 143, None, "143"),
    "crashed, then deleted": (
        pod(ended(139), metadata=DELETED_AFTER), "Crashed", 139, 11, "139",
    ),
    "deleted, then killed": (
        pod(ended(137), metadata=DELETED_BEFORE), "Deleted", 137, None, "deleted",
    ),
    "deleted, still running": (
        pod({"running": {}}, metadata=DELETED_AFTER), "Deleted", None, None, "deleted",
    ),
    "evicted by the kubelet": (
        pod(ended(137), phase="Failed", reason="Evicted", message=EVICTED),
        "Evicted", 137, None, "low on resource: memory",
    ),
    "evicted, no container status": (
        pod(phase="Failed", reason="Evicted", message="Pod was rejected"),
        "Evicted", None, None, "rejected",
    ),
    "evicted by the API": (
        pod(
            {"running": {}},
            disrupted("EvictionByEvictionAPI", "Eviction API: evicting"),
            metadata=DELETED_AFTER,
        ),
        "Evicted", None, None, "Eviction API",
    ),
    "preempted by the scheduler": (
        pod(
            {"running": {}},
            disrupted("PreemptionByScheduler", "preempting to accommodate a pod"),
            metadata=DELETED_AFTER,
        ),
        "Preempted", None, None, "accommodate",
    ),
    "preempted by the kubelet": (
        pod(reason="Preempting", message="Preempted to admit critical pod"),
        "Preempted", None, None, "critical",
    ),
    "node taken away": (
        pod(
            {"running": {}},
            disrupted("DeletionByTaintManager", "Taint manager: deleting"),
            metadata=DELETED_AFTER,
        ),
        "NodeLost", None, None, "Taint manager",
    ),
    "node gone": (
        pod(None, disrupted("DeletionByPodGC", "PodGC: node no longer exists")),
        "NodeLost", None, None, "no longer exists",
    ),
    "node shut down": (
        pod(
            phase="Failed", reason="Terminated",
            message="Pod was terminated in response to imminent node shutdown.",
        ),
        "NodeLost", None, None, "imminent node shutdown",
    ),
    "status lost with the node": (
        pod(ended(137, "ContainerStatusUnknown", message="could not be located")),
        "NodeLost", 137, None, "located",
    ),
    "lived too long": (
        pod(reason="DeadlineExceeded", message="Pod was active on the node longer"),
        "DeadlineExceeded", None, None, "longer",
    ),
    "node had no room after all": (
        pod(phase="Failed", reason="OutOfcpu", message="Node didn't have enough"),
        "RejectedByNode", None, None, "OutOfcpu: Node",
    ),
    "failed without a word": (pod(phase="Failed"), "Failed", None, None, ""),
    "init container failed": (
        pod(
            waits("PodInitializing"),
            init={"state": ended(3, message="no schema")}, phase="Failed",
        ),
        "InitContainer", 3, None, "init container setup ended with exit code 3",
    ),
    "init container out of memory": (
        pod(init={"state": ended(137, "OOMKilled")}, phase="Failed"),
        "OOMKilled", 137, 9, "init container setup",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_end_of_a_pod_has_its_name(case: str) -> None:
    """Name, exit code, signal and the cluster's words, of what came first."""
    given, name, code, signal, words = ENDS[case]
    cause = end_of(given)
    assert cause is not None
    assert (name, code, signal) == (cause.name, cause.exit_code, cause.signal)
    assert words in cause.words
    lost = cause.lost("p-1")
    assert (name, code, signal) == (lost.reason, lost.exit_code, lost.signal)
    assert cause.words in str(cause.boot_error("p-1"))


BOOT_ENDS: dict[str, tuple[dict[str, Any], type[BootError], str]] = {
    "bad command": (
        pod(ended(128, "StartError", message="exec: no such file")),
        ContainerConfigError, "start",
    ),
    "app not loaded": (
        pod(ended(13, message="the app failed to load: ModuleNotFoundError")),
        AppImportError, "import",
    ),
    "refused": (pod(ended(11)), AuthRefused, "connect"),
    "another version": (pod(ended(12)), VersionSkew, "connect"),
    "init": (pod(init={"state": ended(1)}, phase="Failed"), BootError, "init"),
    "no room": (pod(phase="Failed", reason="OutOfpods"), BootError, "schedule"),
}  # fmt: skip


@pytest.mark.parametrize("case", BOOT_ENDS)
def test_boot_that_ended_is_of_its_kind(case: str) -> None:
    """Callers of a boot can tell by class and phase."""
    given, kind, phase = BOOT_ENDS[case]
    cause = end_of(given)
    assert cause is not None
    error = cause.boot_error("p-1")
    assert (kind, phase) == (type(error), error.phase)


@pytest.mark.parametrize(
    "given",
    [
        pod({"running": {}}, READY, phase="Running"),
        pod(waits("ContainerCreating"), SCHEDULED),
        pod(waits("PodInitializing"), init={"state": ended(0, "Completed")}),
        pod(node=None),
        {"metadata": {"name": "p-1"}, "spec": {}},
        pod(None, {**disrupted("EvictionByEvictionAPI", ""), "status": "False"}),
    ],
)
def test_pod_that_lives_has_no_end(given: dict[str, Any]) -> None:
    """Nothing is concluded from a pod that runs or is being made."""
    assert end_of(given) is None


def test_end_of_a_sidecar_is_not_the_runners() -> None:
    """Only the runner's own container says how; a sidecar is started again."""
    for phase in ("Pending", "Running"):
        beside = pod(waits("PodInitializing"), init={"state": ended(1)}, phase=phase)
        assert end_of(beside) is None
    given = pod({"running": {}}, READY, phase="Running")
    given["status"]["containerStatuses"][0]["state"] = ended(137, "OOMKilled")
    assert end_of(given) is None


def test_running_pod_that_is_not_ready_is_on_a_lost_node() -> None:
    """Runners have no probes: only the node controller makes them unready."""
    silent = pod({"running": {}}, {**READY, "status": "False"}, phase="Running")
    cause = silence_of(silent)
    assert cause is not None
    assert ("NodeLost", "worker has stopped reporting") == (cause.name, cause.words)
    assert silence_of(pod({"running": {}}, READY, phase="Running")) is None
    assert silence_of(pod({"running": {}}, {**READY, "status": "False"})) is None


def test_words_are_safe_to_print_and_short() -> None:
    """Messages may hold what a program wrote: no control character gets out."""
    cause = end_of(pod(ended(1, message="\x1b[31mred\x07" + "x" * 10_000)))
    assert cause is not None
    assert "\x1b" not in cause.words
    assert "\x07" not in cause.words
    assert len(cause.words) < 1100


def test_last_output_is_told_with_the_loss() -> None:
    """What the runner printed last stands in the call's error, cleaned."""
    cause = Cause(name="Crashed", words="exit code 1").with_log("a\x1bb\nlast words")
    assert "its last output: a\\x1bb\nlast words" in str(cause.lost("p-1"))
    assert "last words" in cause.boot_error("p-1").log_tail


# ---------------------------------------------------------------------- refusals

FORBIDDEN = 'pods "p-1" is forbidden: '
REFUSALS: dict[str, tuple[kubetls.KubeTLSError, str, type[BootError]]] = {
    "quota": (
        kubetls.Forbidden(
            403, "Forbidden", FORBIDDEN + "exceeded quota: two, requested: pods=1, "
            "used: pods=2, limited: pods=2",
        ),
        "QuotaExceeded", QuotaExceeded,
    ),
    "quota that wants limits": (
        kubetls.Forbidden(
            403, "Forbidden",
            FORBIDDEN + "failed quota: q: must specify limits.cpu for: flame-runner",
        ),
        "QuotaDenied", BootDenied,
    ),
    "pod security": (
        kubetls.Forbidden(
            403, "Forbidden", FORBIDDEN + 'violates PodSecurity "restricted:latest": '
            "runAsNonRoot != true",
        ),
        "PodSecurity", BootDenied,
    ),
    "limit range": (
        kubetls.Forbidden(
            403, "Forbidden",
            FORBIDDEN + "maximum memory usage per Container is 1Gi, but limit is 4Gi",
        ),
        "LimitRange", BootDenied,
    ),
    "limit range, several": (
        kubetls.Forbidden(
            403, "Forbidden", FORBIDDEN + "[minimum cpu usage per Pod is 1, but "
            "request is 100m, maximum cpu usage per Pod is 2, but no limit is "
            "specified]",
        ),
        "LimitRange", BootDenied,
    ),
    "policy": (
        kubetls.Invalid(
            422, "Invalid", "ValidatingAdmissionPolicy 'flame' with binding 'flame' "
            "denied request: no host namespaces",
        ),
        "AdmissionPolicy", BootDenied,
    ),
    "webhook": (
        kubetls.Forbidden(
            403, "Forbidden",
            'admission webhook "validate.kyverno.svc" denied the request: no',
        ),
        "Webhook", BootDenied,
    ),
    "webhook away": (
        kubetls.InternalError(
            500, "InternalError", 'Internal error occurred: failed calling webhook "x"',
        ),
        "Webhook", BootError,
    ),
    "server that has just started": (
        kubetls.Forbidden(
            403, "Forbidden", 'pods "a" is forbidden: not yet ready to handle request',
        ),
        "ApiNotReady", BootError,
    ),
    "rights": (
        kubetls.Forbidden(
            403, "Forbidden", 'pods is forbidden: User "system:serviceaccount:a:b" '
            'cannot create resource "pods" in API group "" in the namespace "a"',
        ),
        "Forbidden", BootDenied,
    ),
    "namespace ending": (
        kubetls.Forbidden(
            403, "Forbidden", FORBIDDEN + "unable to create new content in namespace "
            "a because it is being terminated",
        ),
        "NamespaceTerminating", BootDenied,
    ),
    "unknown account": (
        kubetls.Forbidden(
            403, "Forbidden", FORBIDDEN + "error looking up service account a/b: "
            'serviceaccount "b" not found',
        ),
        "Forbidden", BootDenied,
    ),
    "unknown field": (
        kubetls.BadRequest(
            400, "BadRequest", "strict decoding error: unknown field "
            '"spec.containers[0].imagePullPolizy"',
        ),
        "BadRequest", BootDenied,
    ),
    "invalid": (kubetls.Invalid(422, "Invalid", "x"), "Invalid", BootDenied),
    "no namespace": (kubetls.NotFound(404, "NotFound", "x"), "NotFound", BootDenied),
    "token refused": (
        kubetls.Unauthorized(401, "Unauthorized", "x"), "Unauthorized", BootDenied,
    ),
    "too many requests": (
        kubetls.TooManyRequests(429, "TooManyRequests", "slow down"),
        "TooManyRequests", BootError,
    ),
    "server away": (
        kubetls.ConnectionFailed("10.0.0.1:443", "refused", False),
        "ApiUnreachable", BootError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_has_its_name(case: str) -> None:
    """What will not change by itself is BootDenied; the server's words go along."""
    given, name, kind = REFUSALS[case]
    cause = refusal(given)
    assert (name, "create") == (cause.name, cause.phase)
    error = cause.boot_error("p-1")
    assert kind is type(error)
    if isinstance(given, kubetls.ApiError):
        assert given.message in error.reason
