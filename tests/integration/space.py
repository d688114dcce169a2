"""A namespace of the cluster in a test's hands: run programs in pods, look at pods."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.manifests import listed, pod

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster

FINISHED = ("Succeeded", "Failed")


@dataclass
class Space:
    """A namespace of the cluster, with the account of a parent in it."""

    cluster: Cluster
    name: str

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.cluster.kubectl("-n", self.name, *args, stdin=stdin)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed(list(objects))))

    def start(self, source: str, name: str = "app", **spec: Any) -> str:
        """Start a pod that runs a Python program given as text."""
        command = ["python", "-P", "-c", source]
        self.apply(pod(name, self.cluster.image or "", command, **spec))
        return name

    def run(
        self, source: str, name: str = "app", seconds: float = 90, **spec: Any
    ) -> str:
        """Run a program in a pod to its end and return its output.

        Fails the test when the program did not exit with 0.
        """
        self.start(source, name, **spec)
        phase = self.await_phase(name, FINISHED, seconds)
        text = self.kubectl("logs", name)
        assert phase == "Succeeded", text
        return text

    def await_phase(self, name: str, phases: tuple[str, ...], seconds: float) -> str:
        """Wait until a pod is in one of some phases."""
        query = ("get", "pod", name, "-o", "jsonpath={.status.phase}")
        deadline = time.monotonic() + seconds
        while (phase := self.kubectl(*query)) not in phases:
            if time.monotonic() > deadline:
                text = self.kubectl("describe", "pod", name)
                pytest.fail(
                    f"pod {name} is {phase} after {seconds:g} s\n{text[-3000:]}"
                )
            time.sleep(0.2)
        return phase

    def pods(self) -> list[dict[str, Any]]:
        """Return all pods."""
        found: list[dict[str, Any]] = json.loads(
            self.kubectl("get", "pods", "-o", "json")
        )["items"]
        return found

    def runners(self) -> list[dict[str, Any]]:
        """Return the runner pods."""
        return [
            item
            for item in self.pods()
            if "flame-backend/pool" in (item["metadata"].get("labels") or {})
        ]

    def await_no_runners(self, seconds: float = 40) -> None:
        """Wait until no runner pod is left."""
        deadline = time.monotonic() + seconds
        while found := self.runners():
            if time.monotonic() > deadline:
                names = [item["metadata"]["name"] for item in found]
                pytest.fail(f"runner pods are left after {seconds:g} s: {names}")
            time.sleep(0.3)
