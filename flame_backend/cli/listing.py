"""flame-backend ps and sweep: the runner pods there are, and those nobody owns."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, NamedTuple

import kubetls
from flame_backend.backends.kubernetes.manifest import LABEL
from flame_backend.cli import output
from flame_backend.cli.cluster import add_cluster_options, open_session

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

ENDED = ("Succeeded", "Failed")

PS_HELP = "list runner pods"
PS_DESCRIPTION = """\
List runner pods: pool, phase, age, node, parent, and what each waits for or ended of.
Changes nothing; needs the right to list pods.
"""
PS_EPILOG = """\
examples:
  flame-backend ps -n shop
  flame-backend ps -A --pool thumbs --json
"""
SWEEP_HELP = "delete ended runner pods whose parent is gone"
SWEEP_DESCRIPTION = """\
Delete runner pods that have ended and whose parent's pod has ended or is gone. A
cluster does so itself for runners with an owner; this is for those without, and for
parents that ended and were kept. A pod that runs is never touched: it ends by itself
when its parent is gone.
"""
SWEEP_EPILOG = """\
examples:
  flame-backend sweep --dry-run -n shop
"""


class Found(NamedTuple):
    """A runner pod, as `ps` shows it."""

    namespace: str
    name: str
    uid: str
    pool: str
    phase: str
    age_seconds: float
    node: str
    parent: str
    parent_uid: str
    cause: str


def add_ps_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ps`."""
    parser.add_argument("-A", "--all-namespaces", action="store_true")
    parser.add_argument("--pool", metavar="NAME", help="only runners of this pool")
    add_cluster_options(parser)


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sweep`."""
    parser.add_argument("--dry-run", action="store_true", help="only say which")
    parser.add_argument("--pool", metavar="NAME", help="only runners of this pool")
    add_cluster_options(parser)


def ps(args: argparse.Namespace) -> int:
    """Print the runner pods."""
    with open_session(args) as session:
        namespace = None if args.all_namespaces else session.namespace
        found = _runners(session, namespace, args.pool)
    if args.json:
        output.as_json([runner._asdict() for runner in found])
        return 0
    if not found:
        output.say(f"no runner pods in {namespace or 'any namespace'}")
        return 0
    heads = ("NAMESPACE", "NAME", "POOL", "PHASE", "AGE", "NODE", "PARENT", "CAUSE")
    rows = [
        (
            runner.namespace,
            runner.name,
            runner.pool,
            runner.phase,
            output.age(runner.age_seconds),
            runner.node,
            runner.parent,
            runner.cause,
        )
        for runner in found
    ]
    # One namespace needs no column.
    first = 0 if args.all_namespaces else 1
    output.table(heads[first:], [row[first:] for row in rows])
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Delete, or name, what is left over."""
    with open_session(args) as session:
        found = _runners(session, session.namespace, args.pool)
        pods = kubetls.path("v1", "pods", namespace=session.namespace)
        alive = {
            pod["metadata"]["uid"]
            for pod in session.list(pods)
            if (pod.get("status") or {}).get("phase") not in ENDED
        }
        left = [runner for runner in found if is_left_over(runner, alive)]
        gone = [] if args.dry_run else [r for r in left if _deleted(session, pods, r)]
    if args.json:
        key = "would_delete" if args.dry_run else "deleted"
        output.as_json({key: [r.name for r in (left if args.dry_run else gone)]})
        return 0
    for runner in left if args.dry_run else gone:
        word = "would delete" if args.dry_run else "deleted"
        output.say(f"{word} {runner.name} ({runner.phase}, of {runner.parent})")
    if not left:
        output.say("nothing is left over")
    return 0


def is_left_over(runner: Found, alive: set[str]) -> bool:
    """Say whether a runner's pod has ended and has no parent that could want it.

    Args:
        runner: The pod.
        alive: UIDs of the pods that have not ended.
    """
    return runner.phase in ENDED and runner.parent_uid not in alive


def _deleted(session: kubetls.Session, pods: str, runner: Found) -> bool:
    try:
        session.delete(f"{pods}/{runner.name}", uid=runner.uid)
    except (kubetls.NotFound, kubetls.Conflict):
        # Gone meanwhile, or another of the same name: not the one that was left.
        return False
    return True


def _runners(
    session: kubetls.Session, namespace: str | None, pool: str | None
) -> list[Found]:
    selector = f"{LABEL}/pool={pool}" if pool else f"{LABEL}/pool"
    path = kubetls.path("v1", "pods", namespace=namespace)
    now = dt.datetime.now(dt.UTC)
    found = [described(pod, now) for pod in session.list(path, labels=selector)]
    return sorted(found, key=lambda runner: (runner.namespace, runner.name))


def described(pod: Mapping[str, Any], now: dt.datetime) -> Found:
    """Return what there is to say about a runner's pod."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    owners = metadata.get("ownerReferences") or ()
    owner: dict[str, Any] = next(
        (entry for entry in owners if entry.get("kind") == "Pod"), {}
    )
    annotations = metadata.get("annotations") or {}
    made = dt.datetime.fromisoformat(metadata["creationTimestamp"])
    deleted = "Terminating" if metadata.get("deletionTimestamp") else None
    phase = str(status.get("phase") or "Unknown")
    return Found(
        namespace=str(metadata["namespace"]),
        name=str(metadata["name"]),
        uid=str(metadata["uid"]),
        pool=str(labels.get(f"{LABEL}/pool") or ""),
        phase=phase if phase in ENDED else deleted or phase,
        age_seconds=(now - made).total_seconds(),
        node=str((pod.get("spec") or {}).get("nodeName") or ""),
        parent=str(owner.get("name") or annotations.get(f"{LABEL}/parent") or ""),
        parent_uid=str(
            owner.get("uid") or annotations.get(f"{LABEL}/parent-uid") or ""
        ),
        cause=cause_of(status),
    )


def cause_of(status: Mapping[str, Any]) -> str:
    """Return what a pod waits for or ended of, in the cluster's words; "" when fine."""
    if status.get("reason"):
        return _words(status)
    for condition in status.get("conditions") or ():
        kind, value = condition.get("type"), condition.get("status")
        lost = kind == "DisruptionTarget" and value == "True"
        if lost or (kind == "PodScheduled" and value == "False"):
            return _words(condition)
    for field in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(field) or ():
            state = container.get("state") or {}
            ended = state.get("terminated") or {}
            if state.get("waiting"):
                return _words(state["waiting"])
            if ended and ended.get("reason") != "Completed":
                return f"{_words(ended)} (exit code {ended.get('exitCode')})"
    return ""


def _words(holder: Mapping[str, Any]) -> str:
    parts = (holder.get("reason"), holder.get("message"))
    return ": ".join(str(part) for part in parts if part)
