"""etcd and kube-apiserver, unprivileged, with certificates and flags of our choice.

Starts in seconds on 127.0.0.1 and [::1] with free ports. Owned by the process that
made it: a guard ends it and removes its folder when that process dies.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import ssl
import subprocess
import time
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from tests.cluster.binaries import CONTROL_PLANE, ClusterUnavailable, programs
from tests.cluster.pki import Authority, Pair, signing_keys
from tests.cluster.processes import Processes
from tests.cluster.remains import Guard

if TYPE_CHECKING:
    from pathlib import Path

READY_SECONDS = 60.0
RELOAD_SECONDS = 90.0
ISSUER = "https://kubernetes.default.svc.cluster.local"

_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
"""


# Below those that the kernel gives to outgoing connections, of which one could have the
# port of a server that is being restarted.
_PORTS = range(20_000, 30_000)


def free_port() -> int:
    """Return a port that was free a moment ago on both loopback addresses."""
    for port in random.sample(_PORTS, 100):
        with socket.socket(socket.AF_INET6) as sock, suppress(OSError):
            sock.bind(("::", port))
            return port
    msg = f"no free port among 100 of {_PORTS}"
    raise ClusterUnavailable(msg)


class ControlPlane:
    """A running API server with its etcd.

    Args:
        root: Folder for keys, logs and data; made 0700.
        serving: The API server's certificate; None for a complete one.
        prefix: Put before every command (nsenter into a namespace).
        port: The API server's port; None for a free one.
        node_address: Address of the node, for the cluster with a node.
    """

    def __init__(
        self,
        root: Path,
        *,
        serving: Pair | None = None,
        prefix: tuple[str, ...] = (),
        port: int | None = None,
        node_address: str | None = None,
    ) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root = root
        self.port = port or free_port()
        self.authority = Authority()
        self.processes = Processes(root, prefix)
        self.node_address = node_address
        self._binaries = programs(CONTROL_PLANE)
        also = (node_address,) if node_address else ()
        self._serving = serving or self.authority.serving(also=also)
        self._write_files()
        self._guard: Guard | None = None

    def __enter__(self) -> Self:
        self._guard = Guard(self.root)
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ files

    def _write_files(self) -> None:
        private, public = signing_keys()
        self.write("sa.key", private)
        self.write("sa.pub", public)
        self.write("ca.crt", self.authority.certificate)
        self.write("audit.yaml", _AUDIT_POLICY.encode())
        self._write_serving()
        admin = self.authority.issue(
            "admin", organization="system:masters", server=False
        )
        self.pair("admin", admin)
        kubelet = self.authority.issue(
            "kube-apiserver", organization="system:masters", server=False
        )
        self.pair("apiserver-kubelet", kubelet)

    def _write_serving(self) -> None:
        self.pair("serving", self._serving)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the cluster, 0600."""
        path = self.root / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def pair(self, name: str, pair: Pair) -> None:
        """Write a certificate and its key as NAME.crt and NAME.key."""
        self.write(f"{name}.crt", pair.certificate)
        self.write(f"{name}.key", pair.key)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Start etcd and the API server and wait until it is ready."""
        client, peer = free_port(), free_port()
        self._etcd = f"http://127.0.0.1:{client}"
        self.processes.start(
            "etcd",
            str(self._binaries["etcd"]),
            f"--data-dir={self.root}/etcd",
            f"--listen-client-urls={self._etcd}",
            f"--advertise-client-urls={self._etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self.start_apiserver()

    def start_apiserver(self) -> None:
        """Start the API server with the present certificate; wait until ready."""
        root = self.root
        advertise = self.node_address or "127.0.0.1"
        self.processes.start(
            "kube-apiserver",
            str(self._binaries["kube-apiserver"]),
            f"--etcd-servers={self._etcd}",
            f"--secure-port={self.port}",
            "--bind-address=::",
            f"--advertise-address={advertise}",
            *(() if self.node_address else ("--endpoint-reconciler-type=none",)),
            f"--tls-cert-file={root}/serving.crt",
            f"--tls-private-key-file={root}/serving.key",
            f"--client-ca-file={root}/ca.crt",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={root}/sa.pub",
            f"--service-account-signing-key-file={root}/sa.key",
            "--service-account-extend-token-expiration=false",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--kubelet-client-certificate={root}/apiserver-kubelet.crt",
            f"--kubelet-client-key={root}/apiserver-kubelet.key",
            f"--kubelet-certificate-authority={root}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
            f"--audit-policy-file={root}/audit.yaml",
            f"--audit-log-path={root}/audit.log",
            f"--cert-dir={root}",
        )
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            self.processes.require_alive()
            with suppress(ClusterUnavailable):
                if self.kubectl("get", "--raw", "/readyz", seconds=5).strip() == "ok":
                    return
            time.sleep(0.2)
        msg = f"the API server was not ready within {READY_SECONDS:g} s"
        raise ClusterUnavailable(msg)

    def stop_apiserver(self) -> None:
        """Stop the API server; etcd keeps its state."""
        self.processes.stop("kube-apiserver")

    def restart_apiserver(self, serving: Pair | None = None) -> None:
        """Stop the API server and start it, with another certificate if given.

        Raises:
            ClusterUnavailable: It does not come back.
        """
        self.stop_apiserver()
        if serving is not None:
            self._serving = serving
            self._write_serving()
        self.start_apiserver()

    def present(self, serving: Pair) -> None:
        """Exchange the serving certificate under the running API server.

        Raises:
            ClusterUnavailable: It does not load it.
        """
        self._serving = serving
        self._write_serving()
        wanted = ssl.PEM_cert_to_DER_cert(serving.certificate.decode())
        deadline = time.monotonic() + RELOAD_SECONDS
        while self._presented() != wanted:
            if time.monotonic() > deadline:
                msg = f"the certificate was not loaded within {RELOAD_SECONDS:g} s"
                raise ClusterUnavailable(msg)
            time.sleep(0.2)

    def _presented(self) -> bytes:
        address = ("127.0.0.1", self.port)
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address))

    def compact(self) -> None:
        """Let etcd forget all but the present state."""
        answer = self._ask_etcd("range", {"key": base64.b64encode(b"/").decode()})
        revision = answer["header"]["revision"]
        self._ask_etcd("compaction", {"revision": revision, "physical": True})

    def _ask_etcd(self, what: str, body: dict[str, object]) -> dict[str, Any]:
        request = urllib.request.Request(  # plain http on loopback, as etcd listens
            f"{self._etcd}/v3/kv/{what}", json.dumps(body).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def stop(self) -> None:
        """End everything; the folder with its logs stays."""
        self.processes.stop_all()
        if self._guard is not None:
            self._guard.dismiss()

    # ------------------------------------------------------------------ clients

    def kubectl(self, *args: str, stdin: str | None = None, seconds: float = 60) -> str:
        """Run kubectl as admin; the independent client.

        It checks the server by its CA and by the name "kubernetes", which no test
        takes out of the certificate.

        Raises:
            ClusterUnavailable: It failed; with its words.
        """
        kubeconfig = self.root / "admin.kubeconfig"
        if not kubeconfig.exists():
            text = self.kubeconfig(tls_server_name="kubernetes")
            self.write("admin.kubeconfig", text.encode())
        command = [
            *self.processes.prefix,
            str(self._binaries["kubectl"]),
            f"--kubeconfig={kubeconfig}",
            *args,
        ]
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
            msg = f"kubectl {' '.join(args)}: nothing within {seconds:g} s"
            raise ClusterUnavailable(msg) from error
        if done.returncode:
            msg = f"kubectl {' '.join(args)}: {done.stderr.strip()}"
            raise ClusterUnavailable(msg)
        return done.stdout

    def kubeconfig(
        self,
        host: str = "127.0.0.1",
        *,
        token: str | None = None,
        tls_server_name: str | None = None,
        namespace: str = "default",
    ) -> str:
        """Return a kubeconfig with everything inline; admin unless a token is given."""

        def inline(name: str) -> str:
            return base64.b64encode((self.root / name).read_bytes()).decode()

        user: dict[str, Any] = {"token": token}
        if token is None:
            user = {
                "client-certificate-data": inline("admin.crt"),
                "client-key-data": inline("admin.key"),
            }
        cluster: dict[str, Any] = {
            "server": f"https://{f'[{host}]' if ':' in host else host}:{self.port}",
            "certificate-authority-data": inline("ca.crt"),
        }
        if tls_server_name:
            cluster["tls-server-name"] = tls_server_name
        context = {"cluster": "test", "user": "test", "namespace": namespace}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "test", "user": user}],
                "contexts": [{"name": "test", "context": context}],
            }
        )

    def token(
        self,
        account: str,
        namespace: str = "default",
        *,
        audience: str | None = None,
        seconds: int = 600,
    ) -> str:
        """Request a token of a service account, made when it does not exist."""
        with suppress(ClusterUnavailable):
            self.kubectl("create", "serviceaccount", account, "-n", namespace)
        extra = ("--audience", audience) if audience else ()
        return self.kubectl(
            "create",
            "token",
            account,
            "-n",
            namespace,
            f"--duration={seconds}s",
            *extra,
        ).strip()

    def audit_entries(self) -> list[dict[str, Any]]:
        """Return what the API server recorded of requests so far."""
        return audited(self.root / "audit.log")


def audited(log: Path) -> list[dict[str, Any]]:
    """Return the entries of an audit log, without one that is being written."""
    whole, _, _ = log.read_text().rpartition("\n") if log.exists() else ("", "", "")
    return [json.loads(line) for line in whole.split("\n") if line]
