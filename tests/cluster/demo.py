"""make demo-cluster: the census in a parent pod, on runner pods made from its manifest.

Uses the user's cluster, or the one that `make cluster-up` left, or a private one that
ends here. What was started is removed, also after Ctrl-C.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tests.cluster import keeper
from tests.cluster.binaries import ClusterUnavailable, say
from tests.cluster.cluster import IMAGE_VARIABLE, await_namespace, private_cluster
from tests.cluster.manifests import ACCOUNT, account, listed, pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.cluster import Cluster

_PROGRAM = ["python", "-P", "/app/examples/census.py"]
# Columns would not do: kubectl looks for them in the event, not in its object.
_EVENT = (
    "{.type} {.object.metadata.name} {.object.status.phase}"
    ' {.object.metadata.deletionTimestamp}{"\\n"}'
)
_FINISHED = ("Succeeded", "Failed")


def demo(arguments: list[str]) -> int:
    """Run the census on a cluster and return the parent pod's exit code."""
    started = time.monotonic()
    with _cluster() as cluster, _namespace(cluster) as namespace:
        if cluster.image is None:
            msg = f"pods need an image with our packages; name it in {IMAGE_VARIABLE}"
            raise ClusterUnavailable(msg)
        name = f"census-{secrets.token_hex(2)}"
        with _watched(cluster, namespace):
            parent = pod(
                name, cluster.image, [*_PROGRAM, *arguments], account_name=ACCOUNT
            )
            manifest = json.dumps(listed([*account(), parent]))
            cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest)
            try:
                code = _follow(cluster, namespace, name)
                time.sleep(0.5)  # the last changes of the pods are on their way
            except BaseException:
                _remove_pods(cluster, namespace, name)
                raise
        say("kubectl get pods, now that the parent has ended:")
        print(cluster.kubectl("get", "pods", "-n", namespace), end="", flush=True)
        say(
            f"the parent's exit code: {code}; {time.monotonic() - started:.0f} s in all"
        )
        _remove_pods(cluster, namespace, name)
    return code


@contextmanager
def _cluster() -> Iterator[Cluster]:
    found = keeper.running()
    if found is None:
        with private_cluster() as cluster:
            yield cluster
        return
    say(f"using the running cluster {found.name}; loading our image")
    found.load_our_image()
    yield found


@contextmanager
def _namespace(cluster: Cluster) -> Iterator[str]:
    if cluster.only_namespace is not None:
        yield cluster.only_namespace
        return
    name = f"census-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", name)
    try:
        await_namespace(cluster, name)
        yield name
    finally:
        with suppress(ClusterUnavailable):
            cluster.kubectl("delete", "namespace", name, "--wait=false")


@contextmanager
def _watched(cluster: Cluster, namespace: str) -> Iterator[None]:
    """Print a line for each change of a pod while the body runs."""
    watch = _kubectl(
        cluster, "get", "pods", "-n", namespace, "--watch", "--output-watch-events",
        "-o", f"jsonpath={_EVENT}",
    )  # fmt: skip
    printer = threading.Thread(target=_print_changes, args=(watch,))
    printer.start()
    try:
        yield
    finally:
        watch.terminate()
        watch.wait()
        printer.join()


def _kubectl(cluster: Cluster, *words: str) -> subprocess.Popen[str]:
    command = cluster.kubectl_command(*words)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _print_changes(watch: subprocess.Popen[str]) -> None:
    """Print what a watch tells, once for each change that a person would call one."""
    started = time.monotonic()
    seen: dict[str, str] = {}
    assert watch.stdout is not None
    with watch.stdout:
        for line in watch.stdout:
            event, name, phase, *deleting = line.split()
            shown = "Terminating" if deleting and phase not in _FINISHED else phase
            shown = "gone" if event == "DELETED" else shown
            if seen.get(name) != shown:
                seen[name] = shown
                say(f"{time.monotonic() - started:6.1f} s  pod {name}: {shown}")


def _follow(cluster: Cluster, namespace: str, name: str) -> int:
    """Stream the parent's log until it ends; return its exit code."""
    where = ("-n", namespace)
    _await_phase(cluster, where, name, ("Running", *_FINISHED), 60)
    with _kubectl(cluster, "logs", "-f", *where, name) as log:
        assert log.stdout is not None
        try:
            for line in log.stdout:
                print(line, end="", flush=True)
        except BaseException:
            log.terminate()
            raise
    _await_phase(cluster, where, name, _FINISHED, 30)
    path = "{.status.containerStatuses[0].state.terminated.exitCode}"
    return int(cluster.kubectl("get", "pod", name, *where, "-o", f"jsonpath={path}"))


def _await_phase(
    cluster: Cluster,
    where: tuple[str, ...],
    name: str,
    phases: tuple[str, ...],
    seconds: float,
) -> None:
    deadline = time.monotonic() + seconds
    while True:
        query = ("get", "pod", name, *where, "-o", "jsonpath={.status.phase}")
        phase = cluster.kubectl(*query)
        if phase in phases:
            return
        if time.monotonic() > deadline:
            events = cluster.kubectl("get", "events", *where)
            msg = f"pod {name} is {phase} after {seconds:g} s\n{events}"
            raise ClusterUnavailable(msg)
        time.sleep(0.2)


def _remove_pods(cluster: Cluster, namespace: str, name: str) -> None:
    """Delete the parent; its runners carry it as owner and go with it."""
    print(end="", file=sys.stderr, flush=True)
    with suppress(ClusterUnavailable):
        cluster.kubectl(
            "delete", "pod", name, "-n", namespace, "--grace-period=1",
            "--ignore-not-found",
        )  # fmt: skip
