"""flame-backend ps and sweep: the runner pods there are, and those nobody owns."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import kubetls
from flame_backend.backends.kubernetes.causes import end_of, silence_of
from flame_backend.backends.kubernetes.leftovers import is_left_over
from flame_backend.backends.kubernetes.manifest import LABEL, PARENT_NAMESPACE
from flame_backend.backends.kubernetes.waiting import waiting_for
from flame_backend.cli import output
from flame_backend.cli.cluster import add_cluster_options, open_session
from flame_backend.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

ENDED = ("Succeeded", "Failed")
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")

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
Delete runner pods that have ended, or wait beyond their boot timeout, and whose
parent's pod has ended or is gone. A cluster does so itself for runners with an owner;
this is for those without, and for parents that ended and were kept. A pod that runs is
never touched: it ends by itself when its parent is gone.
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
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="in every namespace"
    )
    parser.add_argument("--pool", metavar="NAME", help="only runners of this pool")
    add_cluster_options(parser)


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sweep`."""
    parser.add_argument("--dry-run", action="store_true", help="only say which")
    parser.add_argument("--pool", metavar="NAME", help="only runners of this pool")
    add_cluster_options(parser)


def ps(args: argparse.Namespace) -> int:
    """Print the runner pods."""
    _require_pool_name(args.pool)
    with open_session(args) as session:
        namespace = None if args.all_namespaces else session.namespace
        pods = _runner_pods(session, namespace, args.pool)
    now = dt.datetime.now(dt.UTC)
    found = [described(pod, now) for pod in pods]
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
    _require_pool_name(args.pool)
    with open_session(args) as session:
        pods = _runner_pods(session, session.namespace, args.pool)
        path = kubetls.path("v1", "pods", namespace=session.namespace)
        # A parent may live elsewhere: where that cannot be seen, nothing is deleted.
        homes = {parent_namespace(pod) for pod in pods}
        alive = {uid for home in sorted(homes) for uid in _alive(session, home)}
        left = orphans(pods, alive, dt.datetime.now(dt.UTC))
        gone = [] if args.dry_run else [r for r in left if _deleted(session, path, r)]
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


def orphans(
    pods: Iterable[dict[str, Any]], alive: set[str], now: dt.datetime
) -> list[Found]:
    """Return the runners that are over and have no parent that could want them.

    Args:
        pods: Pods of runners.
        alive: UIDs of the pods that have not ended.
        now: The time.
    """
    over = [described(pod, now) for pod in pods if is_left_over(pod, now)]
    # One that names no parent is not known to have none.
    spared = {"", *alive}
    return [runner for runner in over if runner.parent_uid not in spared]


def parent_namespace(pod: dict[str, Any]) -> str:
    """Return where a runner's parent lives."""
    metadata = pod["metadata"]
    annotations = metadata.get("annotations") or {}
    return str(annotations.get(PARENT_NAMESPACE) or metadata["namespace"])


def _alive(session: kubetls.Session, namespace: str) -> set[str]:
    """Return the UIDs of the pods that have not ended."""
    pods = session.list(kubetls.path("v1", "pods", namespace=namespace))
    return {
        str(pod["metadata"]["uid"])
        for pod in pods
        if (pod.get("status") or {}).get("phase") not in ENDED
    }


def _deleted(session: kubetls.Session, pods: str, runner: Found) -> bool:
    try:
        session.delete(f"{pods}/{runner.name}", uid=runner.uid)
    except (kubetls.NotFound, kubetls.Conflict):
        # Gone meanwhile, or another of the same name: not the one that was left.
        return False
    return True


def _require_pool_name(name: str | None) -> None:
    """Refuse what would make another selector: `--pool "$UNSET"` is not every pool."""
    if name is not None and not _LABEL_VALUE.match(name):
        raise ConfigurationError("--pool", f"{name!r} is no name of a pool")


def _runner_pods(
    session: kubetls.Session, namespace: str | None, pool: str | None
) -> list[dict[str, Any]]:
    selector = f"{LABEL}/pool" if pool is None else f"{LABEL}/pool={pool}"
    path = kubetls.path("v1", "pods", namespace=namespace)

    def order(pod: dict[str, Any]) -> tuple[str, str]:
        return pod["metadata"]["namespace"], pod["metadata"]["name"]

    return sorted(session.list(path, labels=selector), key=order)


def described(pod: dict[str, Any], now: dt.datetime) -> Found:
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
        cause=cause_of(pod),
    )


def cause_of(pod: dict[str, Any]) -> str:
    """Return what a pod waits for or ended of; "" when it is fine."""
    phase = (pod.get("status") or {}).get("phase")
    found = None if phase == "Succeeded" else end_of(pod) or silence_of(pod)
    if found is None and phase == "Pending":
        found = waiting_for(pod).cause
    return "" if found is None else found.line()
