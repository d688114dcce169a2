"""A cluster with nodes, as the tests see it: one small interface, three providers.

The built node belongs to the tests, and so does a kind cluster that they have made. A
user's own cluster is used only in a namespace that its owner has labelled for it. What
cannot be had raises with what is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tests.cluster import image
from tests.cluster.binaries import CONTROL_PLANE, ClusterUnavailable, programs
from tests.cluster.control_plane import audited

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.control_plane import ControlPlane

KUBECONFIG_VARIABLE = "KUBETLS_TEST_KUBECONFIG"
IMAGE_VARIABLE = "KUBETLS_TEST_IMAGE"
PROVIDER_VARIABLE = "KUBETLS_TEST_PROVIDER"
KIND = "kind"
KIND_VARIABLE = "KUBETLS_TEST_KIND"
PERMISSION = ("kubetls-test", "allowed")
STATE = "cluster.json"


# Control planes of the built nodes that this process owns, by the cluster's name.
control_planes: dict[str, ControlPlane] = {}


class Cluster(Protocol):
    """What tests may ask of a cluster with nodes."""

    @property
    def image(self) -> str | None:
        """The image with Python and our packages; None when nobody named one."""

    @property
    def kubeconfig(self) -> str:
        """Path of an administrator's kubeconfig; of use where `command` runs."""

    @property
    def only_namespace(self) -> str | None:
        """The one namespace that tests may use; None when they may make their own."""

    def command(self, *words: str) -> list[str]:
        """Return a command so that it reaches the cluster's network."""

    def kubectl_command(self, *args: str) -> list[str]:
        """Return the command line of a kubectl of the administrator."""

    def kubectl(self, *args: str, stdin: str | None = None, seconds: float = 60) -> str:
        """Run kubectl as administrator and return its output."""


def kubectl_command(binary: str, kubeconfig: str, *args: str) -> list[str]:
    """Return kubectl's command line."""
    return [binary, f"--kubeconfig={kubeconfig}", *args]


def run(command: list[str], stdin: str | None = None, seconds: float = 60) -> str:
    """Run a command to its end and return its output.

    Raises:
        ClusterUnavailable: It failed or took too long; with its words.
    """
    shown = " ".join(Path(word).name if "/" in word else word for word in command)[:160]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        msg = f"{shown}: nothing within {seconds:g} s"
        raise ClusterUnavailable(msg) from error
    if done.returncode:
        msg = f"{shown}: {done.stderr.strip()[-1500:] or done.stdout.strip()[-1500:]}"
        raise ClusterUnavailable(msg)
    return done.stdout


@dataclass(frozen=True)
class BuiltCluster:
    """How to reach a built node; plain text, so that other processes can too."""

    name: str
    root: str
    kubectl_binary: str
    kubeconfig: str
    ctr: str
    socket: str
    image: str = image.IMAGE
    only_namespace: None = None

    def save(self) -> None:
        """Leave this in the cluster's folder, complete from its first moment."""
        part = Path(self.root) / f"{STATE}.part"
        part.write_text(json.dumps(asdict(self)))
        part.rename(Path(self.root) / STATE)

    @classmethod
    def load(cls, root: Path) -> BuiltCluster:
        """Read what `save` left."""
        return cls(**json.loads((root / STATE).read_text()))

    def command(self, *words: str) -> list[str]:
        """Return a command that runs inside the cluster's network namespace."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *words]

    def kubectl_command(self, *args: str) -> list[str]:
        """Return kubectl's command line, inside the cluster's network."""
        words = kubectl_command(self.kubectl_binary, self.kubeconfig, *args)
        return self.command(*words)

    def kubectl(self, *args: str, stdin: str | None = None, seconds: float = 60) -> str:
        """Run kubectl as administrator."""
        return run(self.kubectl_command(*args), stdin, seconds)

    def audit_entries(self) -> list[dict[str, Any]]:
        """Return what the API server recorded of requests so far."""
        return audited(Path(self.root) / "control-plane" / "audit.log")

    def load_image(self, tar: Path) -> None:
        """Import an image into the node's container runtime."""
        words = (
            self.ctr, "--address", self.socket, "--namespace", "k8s.io",
            "images", "import", str(tar),
        )  # fmt: skip
        run(self.command(*words), seconds=120)

    def load_our_image(self) -> None:
        """Make the Python image of the packages as they are now, and import it."""
        with tempfile.TemporaryDirectory(prefix="kubetls-image-") as folder:
            self.load_image(image.python_image(Path(folder)))


def await_namespace(cluster: Cluster, namespace: str, seconds: float = 90) -> None:
    """Wait until a namespace has what pods need: an account and the cluster's CA.

    After an outage of the API server the controllers come back with their next
    attempt, and client-go leaves up to a minute between two of them.

    Raises:
        ClusterUnavailable: The controllers did not make them in time.
    """
    needed = ("serviceaccount/default", "configmap/kube-root-ca.crt")
    deadline = time.monotonic() + seconds
    while True:
        try:
            cluster.kubectl("get", "-n", namespace, *needed)
        except ClusterUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


class ReachedFromHere:
    """A cluster whose API server is reached from this machine's own network."""

    kubeconfig: str
    kubectl_binary: str

    def command(self, *words: str) -> list[str]:
        """Return the command as it is."""
        return list(words)

    def kubectl_command(self, *args: str) -> list[str]:
        """Return kubectl's command line."""
        return kubectl_command(self.kubectl_binary, self.kubeconfig, *args)

    def kubectl(self, *args: str, stdin: str | None = None, seconds: float = 60) -> str:
        """Run kubectl with the cluster's kubeconfig."""
        return run(self.kubectl_command(*args), stdin, seconds)


@dataclass(frozen=True)
class UserCluster(ReachedFromHere):
    """A cluster of the user, in the namespace labelled for these tests."""

    kubeconfig: str
    only_namespace: str
    image: str | None
    kubectl_binary: str


def find_kubectl() -> str:
    """Return the kubectl of this machine, else one that is built for the tests."""
    return shutil.which("kubectl") or str(programs(CONTROL_PLANE[2:])["kubectl"])


def user_cluster(kubeconfig: str) -> UserCluster:
    """Return the user's cluster if its namespace permits tests.

    Raises:
        ClusterUnavailable: The namespace does not carry the label.
    """
    binary = find_kubectl()
    query = ("config", "view", "--minify", "-o", "jsonpath={..namespace}")
    namespace = run(kubectl_command(binary, kubeconfig, *query)).strip() or "default"
    key, value = PERMISSION
    query = (
        "get",
        "namespace",
        namespace,
        "-o",
        f"jsonpath={{.metadata.labels.{key}}}",
    )
    if run(kubectl_command(binary, kubeconfig, *query)).strip() != value:
        msg = (
            f"namespace {namespace} of {KUBECONFIG_VARIABLE} does not permit tests; "
            f"permit them with: kubectl label namespace {namespace} {key}={value}"
        )
        raise ClusterUnavailable(msg)
    named = os.environ.get(IMAGE_VARIABLE) or None
    return UserCluster(kubeconfig, namespace, named, binary)


def kind_is_asked_for() -> bool:
    """Say whether the tests are to run on kind and on nothing else."""
    provider = os.environ.get(PROVIDER_VARIABLE)
    return provider == KIND or bool(os.environ.get(KIND_VARIABLE))


@contextmanager
def private_cluster() -> Iterator[Cluster]:
    """Lend a cluster: the one that is asked for, else a built node that ends here.

    Raises:
        ClusterUnavailable: It cannot be had; with the remedy.
    """
    from tests.cluster.kind import kind_cluster
    from tests.cluster.node import Node

    named = os.environ.get(KUBECONFIG_VARIABLE)
    if kind_is_asked_for():
        with kind_cluster() as found:
            yield found
    elif named:
        yield user_cluster(named)
    else:
        with Node() as node:
            control_planes[node.name] = node.control_plane
            yield node.cluster
