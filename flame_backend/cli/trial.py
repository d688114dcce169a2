"""A throw-away runner: booted by this pod, called, measured, and deleted again.

What the other checks of doctor conclude, this one tries: that the pod is taken,
scheduled and started, that it reaches this pod over the network and proves who it is,
that the app's image runs calls, and that nothing is left.
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from typing import TYPE_CHECKING, Final

import kubetls
from flame_backend.backends.kubernetes.backend import KubernetesBackend
from flame_backend.backends.kubernetes.refusals import LABEL
from flame_backend.cli import output
from flame_backend.cli.check import Check
from flame_backend.cli.cluster import in_pod
from flame_backend.cli.runners import runner_options
from flame_backend.errors import ConfigurationError, FlameError
from flame_backend.events import BootPhase, GrowEnd, GrowStart
from flame_backend.pool.executor import Pool

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from flame_backend.events import Event

POOL: Final = "doctor"
BOOT_SECONDS: Final = 120.0
CALLS: Final = 50

_REMEDIES: Final = {
    "schedule": "compare resources, nodeSelector and quota with what nodes have",
    "pull": "see that nodes may pull the image",
    "connect": "runners must reach this pod's address: look at NetworkPolicies "
    "(flame-backend init prints them; give their port with --port), and at meshes",
    "import": "import the app in its own image: python -c 'import ...'",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the trial."""
    group = parser.add_argument_group("trial, in the app's pod only")
    group.add_argument(
        "--runner", action="store_true", help="boot a runner, call it, and delete it"
    )
    group.add_argument(
        "--boot-timeout",
        type=float,
        default=BOOT_SECONDS,
        metavar="SECONDS",
        help="how long it may take (default: %(default)g)",
    )
    group.add_argument(
        "--port",
        default="0",
        metavar="PORT|FIRST-LAST",
        help="port to listen on, as policies allow (default: any that is free)",
    )


class Boot:
    """The first boot of a pool, as its events tell it.

    Attributes:
        over: Set when it has ended.
        end: Its last event; None before.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        self.end: GrowEnd | None = None
        self._phases: list[tuple[str, float]] = []

    def __call__(self, event: Event) -> None:
        """Hear an event."""
        if self.over.is_set():
            return
        if isinstance(event, BootPhase):
            output.progress(f"{event.runner}: {event.phase}: {event.detail}")
        if isinstance(event, GrowStart):
            self._phases.append(("create", time.monotonic()))
        elif isinstance(event, BootPhase) and event.phase != self._phases[-1][0]:
            self._phases.append((event.phase, time.monotonic()))
        elif isinstance(event, GrowEnd):
            self._phases.append(("", time.monotonic()))
            self.end = event
            self.over.set()

    def times(self) -> str:
        """Return what each phase took, in words."""
        pairs = zip(self._phases, self._phases[1:], strict=False)
        return ", ".join(f"{name} {end - at:.1f} s" for (name, at), (_, end) in pairs)


def checks(session: kubetls.Session, args: argparse.Namespace) -> Iterator[Check]:
    """Boot a runner and report on it; the last check says that its pod is gone."""
    if args.pod or args.parent or not in_pod():
        remedy = "kubectl exec deploy/NAME -- flame-backend doctor --runner"
        detail = "a runner is tried from the app's pod"
        yield Check("runner", "skip", detail, remedy)
        return
    boot = Boot()
    pool = Pool(
        POOL,
        max=1,
        boot_timeout=args.boot_timeout,
        scale_up_timeout=0,
        backend=_backend(args),
        on_event=boot,
    )
    try:
        yield from _tried(pool, boot)
    except FlameError as error:
        yield Check("runner", "fail", str(error))
    finally:
        pool.shutdown(cancel_futures=True)
    yield _left(session, args.runner_namespace or session.namespace)


def _backend(args: argparse.Namespace) -> KubernetesBackend:
    options = runner_options(args)
    names = [field.name for field in dataclasses.fields(options)]
    given = {name: getattr(options, name) for name in names}
    namespace = args.runner_namespace
    return KubernetesBackend(port=_ports(args.port), namespace=namespace, **given)


def _ports(text: str) -> int | range:
    first, dash, last = text.partition("-")
    try:
        return range(int(first), int(last) + 1) if dash else int(first)
    except ValueError:
        raise ConfigurationError("--port", "a number, or two: 7400-7419") from None


def _tried(pool: Pool, boot: Boot) -> Iterator[Check]:
    call = pool.submit(abs, -1)
    while not boot.over.wait(0.2):
        if call.done() and call.exception() is not None and not boot.over.wait(1):
            break  # there was no boot
    # The pool would try again what has failed; here the first answer is the answer.
    error = None if boot.end is None else boot.end.error
    if error is not None:
        remedy = _REMEDIES.get(error.phase, "")
        yield Check("runner", "fail", f"{error} ({boot.times()})", remedy)
        return
    call.result()
    if boot.end is not None:
        detail = f"{boot.end.runner} on {boot.end.node} dialled in and proved itself"
        took = f"ready after {boot.end.seconds:.1f} s: {boot.times()}"
        yield Check("runner", "ok", f"{detail}; {took}")
    yield Check("calls", "ok", _round_trip(pool))


def _round_trip(pool: Pool) -> str:
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        pool.call(abs, -1)
        took.append(time.perf_counter() - began)
    middle = statistics.median(took) * 1000
    return f"one call there and back takes {middle:.2f} ms (median of {CALLS})"


def _left(session: kubetls.Session, namespace: str) -> Check:
    """Check that no pod of the trial is left."""
    path = kubetls.path("v1", "pods", namespace=namespace)
    try:
        found = list(session.list(path, labels=f"{LABEL}/pool={POOL}"))
    except kubetls.KubeTLSError as error:
        return Check("deleted", "fail", str(error))
    if not found:
        return Check("deleted", "ok", "the runner's pod is gone")
    names = ", ".join(pod["metadata"]["name"] for pod in found)
    remedy = f"kubectl delete pod -n {namespace} {names}"
    return Check("deleted", "warn", f"still there: {names}", remedy)
