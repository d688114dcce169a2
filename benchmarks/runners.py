"""What a pool of pods costs its parent, and how long the first result takes.

    python benchmarks/runners.py [--runners 200] [--rounds 7] [--no-node]

Runners are simulated for the first part: real pods of a real API server, which nobody
schedules, real tokens, and one process that speaks for all of them. The second part
needs a node (root, Linux, or a cluster of the user's): the first result of a pool that
has no runner, beside a bare pod of the same image, in turns, in one parent.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flame_backend as flame  # noqa: E402 - this folder's, not an installed one
from tests.cluster.binaries import ClusterUnavailable  # noqa: E402
from tests.cluster.cluster import await_namespace, private_cluster  # noqa: E402
from tests.cluster.control_plane import ControlPlane  # noqa: E402
from tests.cluster.manifests import account, listed, pod  # noqa: E402
from tests.integration.simulated import ACCOUNT, simulated  # noqa: E402

if TYPE_CHECKING:
    import kubetls
    from tests.cluster.cluster import Cluster

FEW = 10
IDLE_SECONDS = 30.0
NAMESPACE = "bench"

COLD = """
import json, statistics, sys, time
import flame_backend as flame
import kubetls

session = kubetls.session()
pods = kubetls.path('v1', 'pods', namespace=session.namespace)
own = session.get(f"{pods}/app")
image = own['spec']['containers'][0]['image']

def bare(number):
    name = f'bare-{number}'
    container = {'name': 'app', 'image': image, 'imagePullPolicy': 'IfNotPresent',
                 'command': ['python', '-c', 'import time; time.sleep(600)']}
    spec = {'containers': [container], 'terminationGracePeriodSeconds': 0}
    body = {'metadata': {'name': name}, 'spec': spec}
    began = time.monotonic()
    session.post(pods, body)
    session.wait(f'{pods}/{name}',
                 lambda found: bool(found) and found['status']['phase'] == 'Running',
                 60)
    took = time.monotonic() - began
    session.delete(f'{pods}/{name}', grace=0)
    return took

def first(number):
    began = time.monotonic()
    with flame.Pool('cold', max=1) as pool:
        assert pool.call(abs, -number) == number
        return time.monotonic() - began

found = []
for number in range(1, int(sys.argv[1]) + 2):
    found.append((bare(number), first(number)))
    time.sleep(2)
print(json.dumps(found[1:]))
"""


def resident() -> float:
    """Return this process' anonymous memory in KiB."""
    gc.collect()
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return float(line.split()[1])
    return 0.0


def idle_cpu() -> float:
    """Return the share of one CPU that this process uses while nobody calls."""
    used, began = time.process_time(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    return (time.process_time() - used) / (time.monotonic() - began)


def await_ready(pool: flame.Pool, count: int) -> float:
    """Return the seconds until so many runners can take a call."""
    began = time.monotonic()
    while pool.status().ready < count:
        if time.monotonic() - began > 300:
            sys.exit(f"{pool.status().ready} of {count} runners came\n{pool.status()}")
        time.sleep(0.05)
    return time.monotonic() - began


def answers(plane: ControlPlane) -> Counter[tuple[str, str, int]]:
    """Count the parent's requests by verb, resource and status."""
    user = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
    return Counter(
        (
            entry["verb"],
            (entry.get("objectRef") or {}).get("resource", "-"),
            int((entry.get("responseStatus") or {}).get("code", 0)),
        )
        for entry in plane.audit_entries()
        if entry["user"].get("username") == user
    )


def many(session: kubetls.Session, plane: ControlPlane, runners: int) -> None:
    """Boot runners, let them idle, and print what that costs."""
    backend = flame.KubernetesBackend(session=session)
    with flame.Pool(
        "bench", min=FEW, max=runners, boot_timeout=300, backend=backend
    ) as pool:
        await_ready(pool, FEW)
        time.sleep(2)
        few = resident(), idle_cpu(), threading.active_count()
        before = answers(plane)
        used = time.process_time()
        pool.resize(min=runners)
        took = await_ready(pool, runners)
        used = time.process_time() - used
        time.sleep(2)
        asked = answers(plane) - before
        memory = (resident() - few[0]) / (runners - FEW)
        cpu, count = idle_cpu(), threading.active_count()
    storm = sum(number for (verb, *_), number in asked.items() if verb == "create")
    refused = sum(number for (*_, code), number in asked.items() if code == 429)
    print(f"{runners} runners of one parent, simulated, on a real API server")
    print(f"  boot storm: {runners - FEW} runners ready in {took:.1f} s with {used:.1f}"
          f" s of CPU: {storm} creates, {asked.total()} requests in all,"
          f" {refused} x 429")  # fmt: skip
    print(f"  memory: {memory:.0f} KiB for each runner (goal 40)")
    print(f"  threads: {few[2]} with {FEW} runners, {count} with {runners}")
    print(f"  idle: {few[1]:.2%} of a CPU with {FEW} runners, {cpu:.2%} with {runners}")


def simulation(runners: int) -> None:
    """Measure with simulated runners."""
    os.environ["POD_NAME"], os.environ["POD_NAMESPACE"] = "parent", NAMESPACE
    with tempfile.TemporaryDirectory(prefix="kubetls-bench-") as scratch:
        folder = Path(scratch)
        with (
            ControlPlane(folder / "cluster") as plane,
            simulated(plane, folder, NAMESPACE) as session,
        ):
            many(session, plane, runners)
    del os.environ["POD_NAME"], os.environ["POD_NAMESPACE"]


def cold_start(cluster: Cluster, rounds: int) -> None:
    """Measure first results beside bare pods."""
    if cluster.image is None:
        print("cold start: pods need an image with our packages (KUBETLS_TEST_IMAGE)")
        return
    name = cluster.only_namespace or "bench-cold"
    if cluster.only_namespace is None:
        cluster.kubectl("create", "namespace", name)
        await_namespace(cluster, name)
    command = ["python", "-P", "-c", COLD, str(rounds)]
    objects = [*account(), pod("app", cluster.image, command)]
    text = json.dumps(listed(objects))
    cluster.kubectl("-n", name, "apply", "-f", "-", stdin=text)
    found = await_rounds(cluster, name, 30.0 + 20.0 * rounds)
    cluster.kubectl("-n", name, "delete", "pod", "app", "--grace-period=1")
    ratios = [first / bare for bare, first in found]
    medians = [statistics.median(column) for column in zip(*found, strict=True)]
    print(
        "first result of a pool without a runner, beside a bare pod of the same image"
    )
    print(f"  bare pod, POST to Running: {medians[0]:.2f} s; first result:"
          f" {medians[1]:.2f} s; ratio {statistics.median(ratios):.2f},"
          f" {min(ratios):.2f} to {max(ratios):.2f} (goal 1.5)")  # fmt: skip


def await_rounds(
    cluster: Cluster, namespace: str, seconds: float
) -> list[tuple[float, float]]:
    """Return what the parent measured."""
    deadline = time.monotonic() + seconds
    where = ("-n", namespace)
    phase = "jsonpath={.status.phase}"
    while cluster.kubectl(*where, "get", "pod", "app", "-o", phase) not in {
        "Succeeded", "Failed",
    }:  # fmt: skip
        if time.monotonic() > deadline:
            sys.exit(cluster.kubectl(*where, "describe", "pods"))
        time.sleep(1)
    text = cluster.kubectl(*where, "logs", "app")
    try:
        return [(bare, first) for bare, first in json.loads(text.splitlines()[-1])]
    except ValueError:
        sys.exit(text)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--runners", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-node", action="store_true", help="the first part only")
    options = parser.parse_args()
    try:
        simulation(options.runners)
        if not options.no_node:
            with private_cluster() as cluster:
                cold_start(cluster, options.rounds)
    except ClusterUnavailable as error:
        print(f"not measured: {error}")


if __name__ == "__main__":
    main()
