"""A real API server on which a test plays scheduler, kubelet and autoscaler.

No node is needed: pods are posted, watched and deleted for real, and what becomes of
them is written to their status, or told by an event, as those would do it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pytest

import kubetls
from flame_backend import KubernetesBackend, Pool
from flame_backend.backends.kubernetes.refusals import TOKEN_VOLUME
from flame_backend.events import BootPhase, GrowEnd
from flame_backend.runner.parent import VARIABLE
from tests.cluster.cluster import ClusterUnavailable
from tests.integration.apiserver import make_namespace, session_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flame_backend import BootError
    from flame_backend.events import Event
    from tests.cluster.control_plane import ControlPlane

T = TypeVar("T")
Agent = subprocess.Popen[bytes]
RUNNER = (sys.executable, "-P", "-m", "flame_backend.runner")
ROOT = Path(__file__).resolve().parent.parent.parent


class Stage:
    """A namespace with the pod that this process pretends to run in."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.name = f"stage-{secrets.token_hex(4)}"
        make_namespace(plane, self.name)
        self.session = session_of(plane, folder, self.name)
        self.path = kubetls.path("v1", "pods", namespace=self.name)
        self.agents: list[Agent] = []
        self._folder = folder
        self._events = 0
        self._over = threading.Event()
        self._reaper = threading.Thread(target=self._reap, name="stage-kubelet")
        self._reaper.start()
        self.start_parent()

    def _reap(self) -> None:
        """Confirm that pods which are deleted have ended, as their kubelet does."""
        while not self._over.wait(0.2):
            with suppress(kubetls.KubeTLSError):
                for pod in self.session.list(self.path):
                    if "deletionTimestamp" in pod["metadata"]:
                        name = pod["metadata"]["name"]
                        self.session.delete(f"{self.path}/{name}", grace=0)

    def close(self) -> None:
        """Delete everything."""
        self._over.set()
        self._reaper.join()
        for process in self.agents:
            process.kill()
            process.wait()
        self.session.close()
        with suppress(ClusterUnavailable):
            self.plane.kubectl(
                "delete", "namespace", self.name, "--wait=false", "--now"
            )

    def start_parent(self, name: str = "app") -> str:
        """Make the parent's pod, as running here; return its UID."""
        container = {"name": "app", "image": "registry.example/app:1"}
        spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}
        uid = self.session.post(self.path, body | {"spec": spec})["metadata"]["uid"]
        address = "127.0.0.1"
        self.status(name, phase="Running", podIP=address, podIPs=[{"ip": address}])
        return str(uid)

    def status(self, name: str, **fields: Any) -> None:
        """Write fields of a pod's status."""
        self.session.patch(f"{self.path}/{name}/status", {"status": fields})

    def container(self, name: str, **state: Any) -> None:
        """Write the state of a runner's container, as a kubelet."""
        found = {"name": "flame-runner", "state": state, "ready": "running" in state}
        found |= {"restartCount": 0, "image": "i", "imageID": "i"}
        phase = {"running": "Running", "waiting": "Pending"}
        self.status(name, phase=phase.get(*state, "Failed"), containerStatuses=[found])

    def bind(self, name: str, node: str) -> None:
        """Send a pod to a node, as the scheduler does."""
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}}
        self.session.post(f"{self.path}/{name}/binding", body | {"target": target})

    def event(self, pod: dict[str, Any], reason: str, message: str, by: str) -> None:
        """Post an event about a pod, as its writers do."""
        self._events += 1
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = pod["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{self._events}"},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "namespace": self.name,
                "uid": metadata["uid"],
            },
            "reason": reason,
            "message": message,
            "type": "Normal",
            "source": {"component": by},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        self.session.post(kubetls.path("v1", "events", namespace=self.name), body)

    def agent(self, name: str, command: Sequence[str] = RUNNER) -> Agent:
        """Start a runner's process here, as its pod's container.

        With the variable and the token that it would have: the API server signs one
        for this very pod.

        Args:
            name: Of its pod.
            command: What runs in place of the pod's own command.
        """
        self.bind(name, "n1")
        spec = self.session.get(f"{self.path}/{name}")["spec"]
        (volume,) = (v for v in spec["volumes"] if v["name"] == TOKEN_VOLUME)
        (source,) = volume["projected"]["sources"]
        file = self._folder / f"{name}.token"
        audience = source["serviceAccountToken"]["audience"]
        account = spec["serviceAccountName"]
        file.write_text(self.token(account, name, audience))
        env = {e["name"]: e.get("value") for e in spec["containers"][0]["env"]}
        facts = json.loads(env[VARIABLE]) | {"token_path": str(file)}
        self.container(name, running={"startedAt": "2026-03-01T10:00:00Z"})
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, VARIABLE: json.dumps(facts), "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        self.agents.append(process)
        return process

    def token(self, account: str, pod: str, audience: str) -> str:
        """Have the API server sign a token that is bound to a pod."""
        path = kubetls.path(
            "v1", "serviceaccounts", account, namespace=self.name, subresource="token"
        )
        bound = {"apiVersion": "v1", "kind": "Pod", "name": pod}
        spec = {
            "audiences": [audience],
            "expirationSeconds": 600,
            "boundObjectRef": bound,
        }
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        found: str = self.session.post(path, body | {"spec": spec})["status"]["token"]
        return found

    def runners(self) -> list[dict[str, Any]]:
        """Return the runner pods."""
        return list(self.session.list(self.path, labels="flame-backend/pool"))

    def await_runners(self, count: int, seconds: float = 20) -> list[dict[str, Any]]:
        """Wait until so many runner pods are there."""

        def so_many() -> list[dict[str, Any]] | None:
            found = self.runners()
            return found if len(found) == count else None

        return self.until(so_many, seconds)

    def until(self, what: Callable[[], T | None], seconds: float = 20) -> T:
        """Wait for something and return it: who looks twice may see two things."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            if time.monotonic() > deadline:
                names = [pod["metadata"]["name"] for pod in self.runners()]
                pytest.fail(f"nothing in {seconds:g} s; runners: {names}")
            time.sleep(0.1)
        return found


class Play:
    """A pool on the stage with one call that waits, and what its events say."""

    def __init__(self, stage: Stage, name: str = "p", **options: Any) -> None:
        backend = options.pop("backend", {})
        function = options.pop("function", abs)
        argument = options.pop("argument", -1)
        self.stage = stage
        self.events: list[Event] = []
        self.backend = KubernetesBackend(session=stage.session, **backend)
        self.pool = Pool(
            name, max=1, backend=self.backend, on_event=self.events.append, **options
        )
        self.call = self.pool.submit(function, argument)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def runner(self) -> dict[str, Any]:
        """Wait until the pool has one runner pod that is not on its way out."""

        def mine() -> dict[str, Any] | None:
            name = self.pool.status().name
            labels = f"flame-backend/pool={name}"
            pods = list(self.stage.session.list(self.stage.path, labels=labels))
            found = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
            return found[0] if len(found) == 1 else None

        return self.stage.until(mine)

    def phases(self) -> list[tuple[str, str]]:
        """Return phases of boots and their words, in order."""
        found = [event for event in self.events if isinstance(event, BootPhase)]
        return [(event.phase, event.detail) for event in found]

    def errors(self) -> list[BootError]:
        """Return the errors of boots that failed."""
        found = [event for event in self.events if isinstance(event, GrowEnd)]
        return [event.error for event in found if event.error is not None]

    def error(self, seconds: float = 20) -> BootError:
        """Wait for the first boot that fails."""
        return self.stage.until(self.errors, seconds)[0]


def staged(
    plane: ControlPlane, folder: Path, patch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    """Lend a stage; this process takes itself for its parent's pod."""
    found = Stage(plane, folder)
    patch.setenv("POD_NAME", "app")
    patch.setenv("POD_NAMESPACE", found.name)
    yield found
    found.close()
