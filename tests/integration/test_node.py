"""The node of the tests: pods run our image, and nothing stays when its owner dies."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.binaries import CONTROL_PLANE, NODE, ClusterUnavailable, programs
from tests.cluster.cluster import BuiltCluster, Cluster
from tests.cluster.manifests import account, listed, pod
from tests.cluster.remains import (
    HOST_SETTINGS,
    cgroup_hierarchies,
    cgroup_members,
    mounts_below,
    recorded,
    start_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]


def _log_of(cluster: Cluster, where: str, manifest: dict[str, Any]) -> str:
    """Run a pod to its end and return what it printed."""
    name = manifest["metadata"]["name"]
    text = json.dumps(listed([*account(), manifest]))
    cluster.kubectl("apply", "-n", where, "-f", "-", stdin=text)
    ended = "--for=jsonpath={.status.phase}=Succeeded"
    try:
        cluster.kubectl("wait", "-n", where, f"pod/{name}", ended, "--timeout=30s")
    except ClusterUnavailable as error:
        told = cluster.kubectl("describe", "-n", where, f"pod/{name}")
        pytest.fail(f"{error}\n{told}")
    return cluster.kubectl("logs", "-n", where, name)


def test_node_is_ready(cluster: Cluster) -> None:
    """Every node of the cluster says Ready."""
    path = "{.items[*].status.conditions[?(@.type=='Ready')].status}"
    words = cluster.kubectl("get", "nodes", "-o", f"jsonpath={path}").split()
    assert {"True"} == set(words)


def test_pod_runs_our_packages_as_nobody_special(
    cluster: Cluster, image: str, namespace: Callable[[], str]
) -> None:
    """The image has the interpreter, its extensions, both packages, the examples."""
    source = (
        "import ctypes, hashlib, os, socket, sqlite3, ssl, zlib\n"
        "import cryptography.x509, msgspec, urllib3, yaml\n"
        "import kubetls, flame_backend\n"
        "print(os.getuid(), os.path.exists('/app/examples/census.py'))\n"
    )
    manifest = pod("hello", image, ["python", "-P", "-c", source])
    assert "1000 True\n" == _log_of(cluster, namespace(), manifest)


def test_pod_reaches_the_api_with_its_own_credentials(
    cluster: Cluster, image: str, namespace: Callable[[], str]
) -> None:
    """The service address answers, judged by the standard library alone."""
    source = (
        "import os, ssl, urllib.request\n"
        "home = '/var/run/secrets/kubernetes.io/serviceaccount/'\n"
        "host = os.environ['KUBERNETES_SERVICE_HOST']\n"
        "token = open(home + 'token').read()\n"
        "where = open(home + 'namespace').read()\n"
        "url = f'https://{host}/api/v1/namespaces/{where}/pods'\n"
        "head = {'Authorization': 'Bearer ' + token}\n"
        "context = ssl.create_default_context(cafile=home + 'ca.crt')\n"
        "request = urllib.request.Request(url, headers=head)\n"
        "print(urllib.request.urlopen(request, context=context).status)\n"
    )
    manifest = pod("api", image, ["python", "-P", "-c", source])
    assert "200\n" == _log_of(cluster, namespace(), manifest)


def test_projected_token_has_its_audience_and_pod(
    cluster: Cluster, image: str, namespace: Callable[[], str]
) -> None:
    """A token for an audience of ours names that audience and the pod that has it."""
    source = "print(open('/var/run/own/token').read())"
    projected = {
        "serviceAccountToken": {
            "audience": "flame.example",
            "expirationSeconds": 600,
            "path": "token",
        }
    }
    manifest = pod(
        "token",
        image,
        ["python", "-P", "-c", source],
        volumes=[{"name": "own", "projected": {"sources": [projected]}}],
    )
    mount = {"name": "own", "mountPath": "/var/run/own", "readOnly": True}
    manifest["spec"]["containers"][0]["volumeMounts"] = [mount]
    body = _log_of(cluster, namespace(), manifest).split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert (["flame.example"], "token") == (
        claims["aud"],
        claims["kubernetes.io"]["pod"]["name"],
    )


def test_killed_owner_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """After kill -9 of the owner a second cluster goes; the first one is unharmed."""
    if not isinstance(cluster, BuiltCluster):
        pytest.skip("these tests run on another cluster: no node is built")
    programs(CONTROL_PLANE + NODE)
    settings = [(Path("/proc/sys") / name).read_text() for name in HOST_SETTINGS]
    folder = tmp_path / "node"
    command = [sys.executable, "-m", "tests.cluster", "keep", str(folder)]
    with subprocess.Popen(command, cwd=ROOT) as owner:
        deadline = time.monotonic() + 90
        while not (folder / "cluster.json").exists():
            assert owner.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        second = BuiltCluster.load(folder)
        source = "import time; time.sleep(600)"
        sleeper = pod("stays", second.image, ["python", "-c", source])
        text = json.dumps(listed([*account(), sleeper]))
        second.kubectl("apply", "-f", "-", stdin=text)
        second.kubectl("wait", "pod/stays", "--for=condition=Ready", "--timeout=30s")
        client = subprocess.Popen(second.command("sleep", "600"))
        found = recorded(folder) | cgroup_members(second.name) | {client.pid}
        began = {pid: start_time(pid) for pid in found}
        assert len(began) > 8
        assert None not in began.values()
        os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    client.wait(10)
    left: dict[str, object] = {
        "folder": folder.exists(),
        "processes": [pid for pid in began if began[pid] == start_time(pid)],
        "mounts": mounts_below(folder),
        "network": Path("/run/netns", second.name).exists(),
        "cgroups": [h for h in cgroup_hierarchies() if (h / second.name).exists()],
        "settings": [(Path("/proc/sys") / name).read_text() for name in HOST_SETTINGS],
    }
    assert {
        "folder": False,
        "processes": [],
        "mounts": [],
        "network": False,
        "cgroups": [],
        "settings": settings,
    } == left
    assert "True" in cluster.kubectl(
        "get", "nodes", "-o",
        "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}",
    )  # fmt: skip
