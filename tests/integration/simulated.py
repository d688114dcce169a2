"""Runners without a node: they have real pods and real tokens, and speak the protocol.

One process is the kubelet and all runners: for each runner pod that appears it has the
API server sign the token that a kubelet would mount, dials the parent and answers.
Nobody schedules the pods, so they stay Pending, which is all that admission asks for.

    python -m tests.integration.simulated KUBECONFIG NAMESPACE
"""

from __future__ import annotations

import json
import os
import queue
import selectors
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import kubetls
from flame_backend.backends.kubernetes.manifest import LABEL, TOKEN_VOLUME
from flame_backend.runner.control import _hello
from flame_backend.runner.dial import dial
from flame_backend.runner.parent import Parent, parse_parent
from flame_backend.wire.frames import FrameDecoder, Kind, Limits, pack_frame
from flame_backend.wire.values import encode
from tests.cluster.manifests import account, listed
from tests.integration.apiserver import await_role, make_namespace, session_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flame_backend.wire.frames import Frame
    from tests.cluster.control_plane import ControlPlane

BEAT_SECONDS = 5.0
DIALLERS = 8
ACCOUNT = "web"
ADDRESS = "127.0.0.1"


class Peer:
    """A connection to the parent: a control link or a slot's."""

    def __init__(self, parent: Parent, first: bytes) -> None:
        self.parent = parent
        self.sock = dial(parent)
        self.sock.sendall(first)
        self.sock.setblocking(False)
        self.decoder = FrameDecoder(Limits(64 * 1024 * 1024))

    def frames(self) -> list[Frame]:
        """Return what has arrived.

        Raises:
            ConnectionError: The parent has closed it.
        """
        found: list[Frame] = []
        with suppress(ssl.SSLWantReadError):
            while True:
                data = self.sock.recv(65536)
                if not data:
                    raise ConnectionError
                found += self.decoder.feed(data)
        return found


class Runners:
    """All runners of a namespace."""

    def __init__(self, session: kubetls.Session, namespace: str) -> None:
        self._session = session
        self._namespace = namespace
        self._pods = kubetls.path("v1", "pods", namespace=namespace)
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._woken = os.pipe()
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._fresh: queue.SimpleQueue[Peer] = queue.SimpleQueue()
        self._dials: queue.SimpleQueue[Callable[[], Peer]] = queue.SimpleQueue()
        self._controls: set[Peer] = set()

    def run(self) -> None:
        """Serve until the process is killed."""
        for _ in range(DIALLERS):
            threading.Thread(target=self._dial, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        beat = time.monotonic()
        while True:
            for key, _ in self._selector.select(max(0.0, beat - time.monotonic())):
                if key.data is None:
                    os.read(self._wakeup, 4096)
                else:
                    self._serve(key.data)
            while not self._fresh.empty():
                peer = self._fresh.get()
                self._selector.register(peer.sock, selectors.EVENT_READ, peer)
                self._serve(peer)
            if time.monotonic() >= beat:
                beat = time.monotonic() + BEAT_SECONDS
                for peer in list(self._controls):
                    self._say(peer, Kind.PING, b"")

    def _watch(self) -> None:
        watch = self._session.list_watch(self._pods, labels=f"{LABEL}/pool")
        for event in watch:
            if event.type == "ADDED":
                pod = event.object
                self._dials.put(lambda pod=pod: self._started(pod))  # type: ignore[misc]

    def _dial(self) -> None:
        while True:
            step = self._dials.get()
            # Its pod or its parent is gone: so is the runner.
            with suppress(OSError, kubetls.KubeTLSError):
                self._fresh.put(step())
                os.write(self._woken, b"\0")

    def _started(self, pod: dict[str, Any]) -> Peer:
        """Be the kubelet and the agent of a pod."""
        spec = pod["spec"]
        (text,) = (
            entry["value"]
            for entry in spec["containers"][0]["env"]
            if entry["name"] == "FLAME_PARENT"
        )
        (volume,) = (item for item in spec["volumes"] if item["name"] == TOKEN_VOLUME)
        source = volume["projected"]["sources"][0]["serviceAccountToken"]
        parent = parse_parent(text)
        with tempfile.NamedTemporaryFile("w") as token:
            token.write(self._token(pod, source))
            token.flush()
            hello = _hello(Parent(**vars(parent) | {"token_path": token.name}))
        peer = Peer(parent, pack_frame(Kind.HELLO, hello))
        self._controls.add(peer)
        return peer

    def _token(self, pod: dict[str, Any], source: dict[str, Any]) -> str:
        path = kubetls.path(
            "v1",
            "serviceaccounts",
            pod["spec"]["serviceAccountName"],
            namespace=self._namespace,
            subresource="token",
        )
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        spec = {
            "audiences": [source["audience"]],
            "expirationSeconds": source["expirationSeconds"],
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid,
            },
        }  # fmt: skip
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        found = self._session.post(path, body | {"spec": spec})
        return str(found["status"]["token"])

    def _serve(self, peer: Peer) -> None:
        try:
            for frame in peer.frames():
                self._obey(peer, frame)
        except OSError:
            self._controls.discard(peer)
            self._selector.unregister(peer.sock)
            peer.sock.close()

    def _obey(self, peer: Peer, frame: Frame) -> None:
        if frame.kind is Kind.WELCOME:
            self._say(peer, Kind.READY, json.dumps({"phases": []}).encode())
        elif frame.kind is Kind.OPEN_SLOT:
            ticket = bytes.fromhex(json.loads(bytes(frame.body))["ticket"])
            first = pack_frame(Kind.TICKET, ticket)
            self._dials.put(lambda: Peer(peer.parent, first))
        elif frame.kind is Kind.SHUTDOWN:
            self._say(peer, Kind.GOODBYE, json.dumps({"reason": "shutdown"}).encode())
            raise ConnectionError
        elif frame.kind is Kind.CALL:
            body = encode(frame.call_id).body
            peer.sock.sendall(pack_frame(Kind.RESULT, body, frame.call_id))

    def _say(self, peer: Peer, kind: Kind, body: bytes) -> None:
        with suppress(OSError):
            peer.sock.sendall(pack_frame(kind, body))


@contextmanager
def simulated(
    plane: ControlPlane, folder: Path, namespace: str
) -> Iterator[kubetls.Session]:
    """Have a parent's pod in a new namespace, whose runners come to this process.

    Yields:
        A session as a parent has it: its account's, with the shipped rules.
    """
    make_namespace(plane, namespace)
    rights = [item for item in account(ACCOUNT) if item["kind"] != "ServiceAccount"]
    rights[-1]["subjects"][0]["namespace"] = namespace
    container = {"name": "app", "image": "none"}
    parent = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "parent"},
        "spec": {"serviceAccountName": ACCOUNT, "containers": [container]},
    }
    text = json.dumps(listed([*rights, parent]))
    plane.kubectl("-n", namespace, "apply", "-f", "-", stdin=text)
    status = {"status": {"podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]}}
    patch = ("patch", "pod", "parent", "--subresource=status", "-p", json.dumps(status))
    plane.kubectl("-n", namespace, *patch)
    session_of(plane, folder, namespace).close()
    words = ("-m", "tests.integration.simulated")
    admin = folder / f"{namespace}-None.kubeconfig"
    process = subprocess.Popen([sys.executable, *words, str(admin), namespace])
    token = plane.token(ACCOUNT, namespace)
    file = folder / "parent.kubeconfig"
    file.write_text(plane.kubeconfig(token=token, namespace=namespace))
    # As in a cluster: repetitions are the backend's to make.
    retries = kubetls.Retries(attempts=1)
    try:
        with kubetls.session(kubetls.kubeconfig(str(file)), retries=retries) as session:
            await_role(session, namespace)
            yield session
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Be all runners of a namespace."""
    _, file, namespace = sys.argv
    with kubetls.session(kubetls.kubeconfig(file)) as session:
        Runners(session, namespace).run()


if __name__ == "__main__":
    main()
