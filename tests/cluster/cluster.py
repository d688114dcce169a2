"""A cluster to talk to, whoever provides it: the user's own, or the built node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tests.cluster.binaries import CONTROL_PLANE, ClusterUnavailable, programs
from tests.cluster.image import IMAGE

ROOT = Path(__file__).resolve().parents[2]
PERMIT_LABEL = "kubetls-test"
START_SECONDS = 1800.0


class Cluster(Protocol):
    """What tests and the demo need of a cluster."""

    image: str

    def kubectl(self, *args: str, stdin: str | None = None, seconds: float = 60) -> str:
        """Run kubectl."""
        ...

    def close(self) -> None:
        """Remove what was made."""
        ...


class BuiltCluster:
    """The node built from sources, served by a process of its own.

    Closing the pipe to that process ends the cluster, and so does the death of this
    one, however it comes.
    """

    image = IMAGE

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="ktls-"))
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.serve", str(self.root)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        facts = json.loads(line) if line else {"error": "the cluster did not start"}
        if "error" in facts:
            self.close()
            raise ClusterUnavailable(facts["error"])
        self.name: str = facts["name"]
        self.prefix: list[str] = facts["prefix"]
        self._kubectl = programs(CONTROL_PLANE)["kubectl"]

    @property
    def server_pid(self) -> int:
        """Process id of the serving process."""
        return self._server.pid

    def kubectl(self, *args: str, stdin: str | None = None, seconds: float = 60) -> str:
        """Run kubectl as admin, inside the cluster's network."""
        kubeconfig = self.root / "control-plane" / "admin.kubeconfig"
        command = [*self.prefix, str(self._kubectl), f"--kubeconfig={kubeconfig}"]
        return run_kubectl(command, args, stdin, seconds)

    def audit_entries(self) -> list[dict[str, Any]]:
        """Return what the API server recorded of requests so far."""
        path = self.root / "control-plane" / "audit.log"
        return [json.loads(line) for line in path.read_text().splitlines() if line]

    def close(self) -> None:
        """End the cluster and wait until everything of it is gone."""
        if self._server.stdin is not None:
            with suppress(BrokenPipeError):
                self._server.stdin.close()
        self._server.wait(120)
        if self._server.stdout is not None:
            self._server.stdout.close()
        shutil.rmtree(self.root, ignore_errors=True)


class UsersCluster:
    """The cluster of $KUBETLS_TEST_KUBECONFIG, in a namespace that permits it."""

    def __init__(self, kubeconfig: str) -> None:
        self.image = os.environ.get("KUBETLS_TEST_IMAGE", "")
        kubectl = shutil.which("kubectl") or str(programs(CONTROL_PLANE)["kubectl"])
        self._command = [kubectl, f"--kubeconfig={kubeconfig}"]
        self.namespace = run_kubectl(
            self._command,
            ("config", "view", "--minify", "-o", "jsonpath={..namespace}"),
            None,
            20,
        )
        label = self.kubectl(
            "get", "namespace", self.namespace or "default", "-o",
            f"jsonpath={{.metadata.labels.{PERMIT_LABEL}}}",
        )  # fmt: skip
        if label != "allowed":
            msg = (
                f"namespace {self.namespace or 'default'} does not permit tests; "
                f"kubectl label namespace NAME {PERMIT_LABEL}=allowed"
            )
            raise ClusterUnavailable(msg)

    def kubectl(self, *args: str, stdin: str | None = None, seconds: float = 60) -> str:
        """Run kubectl as the user."""
        return run_kubectl(self._command, args, stdin, seconds)

    def close(self) -> None:
        """Nothing of the cluster is ours."""


def run_kubectl(
    command: list[str], args: tuple[str, ...], stdin: str | None, seconds: float
) -> str:
    """Run kubectl and return its output.

    Raises:
        ClusterUnavailable: It failed; with its words.
    """
    try:
        done = subprocess.run(
            [*command, *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        msg = f"kubectl {' '.join(args)}: nothing within {seconds:g} s"
        raise ClusterUnavailable(msg) from error
    if done.returncode:
        msg = f"kubectl {' '.join(args)}: {done.stderr.strip()}"
        raise ClusterUnavailable(msg)
    return done.stdout


def cluster() -> BuiltCluster | UsersCluster:
    """Return a cluster: the user's if one is named, else one that is built here.

    Raises:
        ClusterUnavailable: None can be had; says what is missing.
    """
    named = os.environ.get("KUBETLS_TEST_KUBECONFIG")
    return UsersCluster(named) if named else BuiltCluster()


def apply(made: Cluster, text: str) -> None:
    """Apply objects, again while a namespace's own account is still being made."""
    deadline = time.monotonic() + 15
    while True:
        try:
            made.kubectl("apply", "-f", "-", stdin=text)
        except ClusterUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            return
