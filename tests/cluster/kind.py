"""A kind cluster: one control plane and two workers as containers of Docker.

It is made here and deleted at the end, or it is up already and the user has named it
in KUBETLS_TEST_KIND: then it stays. Nothing is used but the commands `docker` and
`kind` of this machine; they find their daemon by the usual variables.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster import image
from tests.cluster.binaries import ClusterUnavailable, say
from tests.cluster.cluster import (
    IMAGE_VARIABLE,
    KIND_VARIABLE,
    ReachedFromHere,
    await_namespace,
    find_kubectl,
    run,
)
from tests.cluster.remains import Guard, clean_up, record_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE_IMAGE_VARIABLE = "KUBETLS_TEST_KIND_IMAGE"
WORKERS = 2

# The node image of kind's release is pulled by `create` where it is not there yet.
CREATE_SECONDS = 900
READY_SECONDS = 180

_CGROUP_V1_KUBELET = """\
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
"""
_CGROUP_V1_CONTAINERD = """\
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


@dataclass(frozen=True)
class KindCluster(ReachedFromHere):
    """How to reach a kind cluster and its nodes."""

    kubeconfig: str
    kubectl_binary: str
    name: str
    image: str | None = image.IMAGE
    only_namespace: None = None

    def workers(self) -> list[str]:
        """Return the names of the workers; their containers have the same."""
        workers = "!node-role.kubernetes.io/control-plane"
        names = "jsonpath={.items[*].metadata.name}"
        return sorted(self.kubectl("get", "nodes", "-l", workers, "-o", names).split())

    def docker(self, *words: str, seconds: float = 60) -> str:
        """Run docker, for what is done to a node from outside."""
        return run(["docker", *words], seconds=seconds)

    def await_ready(self, seconds: int = READY_SECONDS) -> None:
        """Wait until every node is Ready; kind waits for the control plane alone."""
        self.kubectl(
            "wait", "nodes", "--all", "--for=condition=Ready", f"--timeout={seconds}s",
            seconds=seconds + 10,
        )  # fmt: skip

    def load_our_image(self) -> None:
        """Put the Python image of the packages as they are now into every node."""
        with tempfile.TemporaryDirectory(prefix="kubetls-image-") as folder:
            tar = image.python_image(Path(folder))
            run(["kind", "load", "image-archive", str(tar), "--name", self.name],
                seconds=300)  # fmt: skip


@contextmanager
def kind_cluster() -> Iterator[KindCluster]:
    """Lend the kind cluster that the user has named, else one that ends here.

    Raises:
        ClusterUnavailable: It cannot be had; with the remedy.
    """
    require_tools()
    named = os.environ.get(KIND_VARIABLE)
    if named:
        with tempfile.TemporaryDirectory(prefix="kubetls-kind-") as folder:
            found = _existing(named, Path(folder))
            _fill(found)
            yield found
    else:
        with _created() as made:
            yield made


def require_tools() -> None:
    """Have docker, its daemon, kind, and what an image for pods is made of.

    Raises:
        ClusterUnavailable: One of them is missing; with where it comes from.
    """
    if sys.platform != "linux" and not os.environ.get(IMAGE_VARIABLE):
        msg = (
            f"pods need an image, made of a Linux machine or named by {IMAGE_VARIABLE}"
        )
        raise ClusterUnavailable(msg)
    for name, source in (
        ("docker", "https://docs.docker.com/engine/install"),
        ("kind", "https://kind.sigs.k8s.io/docs/user/quick-start#installation"),
    ):
        if shutil.which(name) is None:
            msg = f"a kind cluster needs {name}, which is not on PATH: {source}"
            raise ClusterUnavailable(msg)
    try:
        _docker_info("ServerVersion")
    except ClusterUnavailable as error:
        msg = f"a kind cluster needs a Docker daemon that answers: {error}"
        raise ClusterUnavailable(msg) from error


def _docker_info(field: str) -> str:
    return run(["docker", "info", "--format", f"{{{{.{field}}}}}"]).strip()


def _existing(name: str, folder: Path) -> KindCluster:
    """Return a cluster that is up; its kubeconfig is written for us alone."""
    there = run(["kind", "get", "clusters"]).split()
    if name not in there:
        listed = ", ".join(there) or "none"
        msg = f"{KIND_VARIABLE} names {name!r}, and kind has {listed}"
        raise ClusterUnavailable(msg)
    kubeconfig = folder / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(run(["kind", "get", "kubeconfig", "--name", name]))
    say(f"using the kind cluster {name}, which stays; its workers may be stopped and "
        f"started, and {image.IMAGE} is loaded into its nodes")  # fmt: skip
    return KindCluster(str(kubeconfig), find_kubectl(), name, _image())


@contextmanager
def _created() -> Iterator[KindCluster]:
    """Make a cluster and delete it at the end, also when this process is killed."""
    kubectl = find_kubectl()
    folder = Path(tempfile.mkdtemp(prefix="kubetls-kind-"))
    name = f"kubetls-{secrets.token_hex(3)}"
    kubeconfig = folder / "kubeconfig"
    made = KindCluster(str(kubeconfig), kubectl, name, _image())
    record_kind(folder, name)
    guard = Guard(folder)
    try:
        started = time.monotonic()
        say(f"creating the kind cluster {name}: a control plane, {WORKERS} workers")
        _create(name, kubeconfig)
        made.await_ready()
        say(f"its nodes are ready after {time.monotonic() - started:.0f} s")
        _fill(made)
        yield made
    finally:
        clean_up(folder)
        guard.dismiss()
        _report_end(name)


def _create(name: str, kubeconfig: Path) -> None:
    chosen = os.environ.get(NODE_IMAGE_VARIABLE)
    run(
        [
            "kind", "create", "cluster", "--name", name, "--config=-",
            "--kubeconfig", str(kubeconfig), "--wait", f"{READY_SECONDS}s",
            *(["--image", chosen] if chosen else []),
        ],
        stdin=json.dumps(cluster_config(_docker_info("CgroupVersion"))),
        seconds=CREATE_SECONDS,
    )  # fmt: skip


def cluster_config(cgroup_version: str) -> dict[str, object]:
    """Return kind's configuration; JSON is YAML."""
    roles = ["control-plane", *["worker"] * WORKERS]
    config: dict[str, object] = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": [{"role": role} for role in roles],
    }
    if cgroup_version == "1":
        # Kubelets of 1.35 and later refuse it, and systemd freezes cgroups there.
        config["kubeadmConfigPatches"] = [_CGROUP_V1_KUBELET]
        config["containerdConfigPatches"] = [_CGROUP_V1_CONTAINERD]
    return config


def _image() -> str:
    return os.environ.get(IMAGE_VARIABLE) or image.IMAGE


def _fill(cluster: KindCluster) -> None:
    """Load the tests' image, unless the user has named one that is there."""
    started = time.monotonic()
    if cluster.image == image.IMAGE:
        cluster.load_our_image()
        say(f"image loaded in {time.monotonic() - started:.0f} s")
    await_namespace(cluster, "default")


def _report_end(name: str) -> None:
    """Say what became of a cluster of ours.

    Raises:
        ClusterUnavailable: It is still there.
    """
    if name in run(["kind", "get", "clusters"]).split():
        msg = f"left behind; delete it with: kind delete cluster --name {name}"
        raise ClusterUnavailable(msg)
    say(f"kind cluster {name} deleted")
