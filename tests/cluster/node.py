"""A node: containerd and kubelet in a network namespace that is the whole cluster.

Root and Linux. Nothing in the namespace has a route out. Every path, cgroup and
namespace carries the cluster's own random name, so two clusters on one host do not
meet; what is ended or unmounted at the end is what was made here.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.cluster import image
from tests.cluster.binaries import (
    CONTROL_PLANE,
    NODE,
    ClusterUnavailable,
    programs,
    say,
)
from tests.cluster.cluster import BuiltCluster, await_namespace, run
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node_config import (
    cni_config,
    containerd_config,
    kubelet_config,
    require_packages,
)
from tests.cluster.processes import Processes
from tests.cluster.remains import (
    Guard,
    cgroup_hierarchies,
    cgroup_members,
    clean_up,
    record_node,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NODE_ADDRESS = "10.99.0.1"
SERVICE_ADDRESS = "10.96.0.1"
PORT = 6443


class Node:
    """A one-node cluster: control plane, controller manager, scheduler, node.

    Args:
        root: Folder for everything of the cluster; None for a new one.
    """

    def __init__(self, root: Path | None = None) -> None:
        require_packages()
        self.binaries = programs(CONTROL_PLANE + NODE)
        # Only now: what cannot be had here leaves no folder behind.
        root = root or Path(tempfile.mkdtemp(prefix="kubetls-node-"))
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root = root
        self.name = f"ktls-{secrets.token_hex(3)}"
        self._outside = ("nsenter", f"--net=/run/netns/{self.name}")
        self.control_plane = ControlPlane(
            root / "control-plane",
            prefix=(*self._outside, "--"),
            port=PORT,
            node_address=NODE_ADDRESS,
        )
        self.processes = Processes(root, (*self._outside, "--"))
        self.containers = Processes(root)
        self.socket = root / "containerd.sock"
        self.cluster = BuiltCluster(
            name=self.name,
            root=str(root),
            kubectl_binary=str(self.binaries["kubectl"]),
            kubeconfig=str(root / "control-plane" / "admin.kubeconfig"),
            ctr=str(self.binaries["ctr"]),
            socket=str(self.socket),
        )

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

    # ------------------------------------------------------------------ up

    def start(self) -> None:
        """Start everything and wait until the node is Ready."""
        started = time.monotonic()
        say("starting a kubelet; it sets vm.overcommit_memory, kernel.panic and "
            "kernel.panic_on_oops for this host, put back at the end")  # fmt: skip
        record_node(self.root, self.name)
        self._make_network()
        self._start_containerd()
        with ThreadPoolExecutor(1) as pool:
            images = pool.submit(self._load_images)
            self.control_plane.start()
            say(f"API server ready after {time.monotonic() - started:.1f} s")
            self._start_controllers()
            self._start_kubelet()
            self._wait_ready()
            await_namespace(self.cluster, "default")
            images.result()
        self.cluster.save()
        say(f"node ready after {time.monotonic() - started:.1f} s")

    def _make_network(self) -> None:
        run(["ip", "netns", "add", self.name])
        script = f"""
            ip link set lo up
            ip addr add {SERVICE_ADDRESS}/32 dev lo
            # A bridge without ports stands in for the node's network card.
            ip link add node0 type bridge
            ip addr add {NODE_ADDRESS}/24 dev node0
            ip link set node0 up
            sysctl -q -w net.ipv4.ip_forward=1
            for chain in PREROUTING OUTPUT; do
              iptables -w -t nat -A $chain -d {SERVICE_ADDRESS} -p tcp --dport 443 \
                -j REDIRECT --to-ports {PORT}
            done"""
        run(self.cluster.command("sh", "-euc", script))

    def _make_mounts(self) -> None:
        """Give containerd and kubelet mounts of their own.

        What they write into the host's folders (sockets, log links, CNI results)
        lands in memory, and what they mount goes when the last of them ends.
        """
        ready = self.root / "mounts-ready"
        script = f"""
            mount --make-rshared /
            mount -t tmpfs -o mode=755 tmpfs /run
            mount -t tmpfs -o mode=755 tmpfs /var/log
            for folder in /var/lib/cni /var/lib/kubelet; do
              mkdir -p $folder
              mount -t tmpfs -o mode=755 tmpfs $folder
            done
            touch {ready}
            exec sleep infinity"""
        self.processes.start(
            "mounts",
            "unshare", "--mount", "--propagation", "private", "sh", "-euc", script,
        )  # fmt: skip
        wait_for(ready.exists, 10, "mount namespace", self.processes)
        holder = self.processes.pid("mounts")
        self.containers.prefix = (
            *self._outside, f"--mount=/proc/{holder}/ns/mnt", "--",
        )  # fmt: skip

    def _kubeconfig(
        self, name: str, user: str, organization: str | None = None
    ) -> Path:
        plane = self.control_plane
        pair = plane.authority.issue(user, organization=organization, server=False)
        plane.pair(name, pair)
        text = json.loads(plane.kubeconfig())
        text["users"][0]["user"] = {
            "client-certificate": str(plane.root / f"{name}.crt"),
            "client-key": str(plane.root / f"{name}.key"),
        }
        return plane.write(f"{name}.kubeconfig", json.dumps(text).encode())

    def _start_controllers(self) -> None:
        plane = self.control_plane
        manager = self._kubeconfig(
            "kube-controller-manager", "system:kube-controller-manager"
        )
        self.processes.start(
            "kube-controller-manager",
            str(self.binaries["kube-controller-manager"]),
            f"--kubeconfig={manager}",
            f"--service-account-private-key-file={plane.root}/sa.key",
            f"--root-ca-file={plane.root}/ca.crt",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--cluster-cidr=10.244.0.0/16",
            "--bind-address=127.0.0.1",
        )
        scheduler = self._kubeconfig("kube-scheduler", "system:kube-scheduler")
        self.processes.start(
            "kube-scheduler",
            str(self.binaries["kube-scheduler"]),
            f"--kubeconfig={scheduler}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )

    def _start_containerd(self) -> None:
        cni = self.root / "cni"
        cni.mkdir()
        (cni / "10-bridge.conflist").write_text(cni_config(self.root / "ipam"))
        config = self.root / "containerd.toml"
        config.write_text(containerd_config(self.root, cni))
        bin_folder = self.root / "bin"
        bin_folder.mkdir()
        shim = "containerd-shim-runc-v2"
        (bin_folder / shim).symlink_to(self.binaries[shim])
        self._make_mounts()
        self.containers.start(
            "containerd",
            str(self.binaries["containerd"]),
            f"--config={config}",
            env={"PATH": f"{bin_folder}:{os.environ['PATH']}"},
        )
        wait_for(self.socket.exists, 20, "containerd's socket", self.containers)

    def _load_images(self) -> None:
        pause = image.pause_image(self.binaries["pause"], self.root)
        self.cluster.load_image(pause)
        self.cluster.load_our_image()

    def _start_kubelet(self) -> None:
        for hierarchy in cgroup_hierarchies():
            with contextlib.suppress(OSError):
                (hierarchy / self.name).mkdir(exist_ok=True)
                _inherit_cpuset(hierarchy / self.name)
        plane = self.control_plane
        user = f"system:node:{self.name}"
        kubeconfig = self._kubeconfig("kubelet", user, "system:nodes")
        serving = plane.authority.issue(
            user,
            organization="system:nodes",
            names=(self.name,),
            addresses=(NODE_ADDRESS,),
        )
        plane.pair("kubelet-serving", serving)
        config = self.root / "kubelet.json"
        config.write_text(json.dumps(kubelet_config(self.root, self.name, self.socket)))
        self.containers.start(
            "kubelet",
            str(self.binaries["kubelet"]),
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={NODE_ADDRESS}",
            f"--root-dir={self.root}/kubelet",
            f"--cert-dir={self.root}/kubelet-pki",
        )

    def _wait_ready(self) -> None:
        query = (
            "get", "node", self.name, "-o",
            "jsonpath={.status.conditions[?(@.type=='Ready')].status}",
        )  # fmt: skip

        def ready() -> bool:
            try:
                return self.cluster.kubectl(*query) == "True"
            except ClusterUnavailable:
                return False

        wait_for(ready, 60, "the node's Ready", self.containers)

    # ------------------------------------------------------------------ down

    def stop(self) -> None:
        """End and remove everything that was made here."""
        with contextlib.suppress(ClusterUnavailable):
            self.cluster.kubectl(
                "delete", "pods", "--all", "--all-namespaces", "--force",
                "--grace-period=0", "--wait=false", seconds=10,
            )  # fmt: skip
            with contextlib.suppress(ClusterUnavailable):
                empty = lambda: not cgroup_members(self.name)  # noqa: E731 (one use)
                wait_for(empty, 5, "the end of pods", self.containers)
        self.containers.stop_all()
        self.processes.stop_all()
        self.control_plane.stop()
        clean_up(self.root)
        self._guard.dismiss()


def wait_for(
    there: Callable[[], bool], seconds: float, what: str, processes: Processes
) -> None:
    """Wait for something while the processes that make it live.

    Raises:
        ClusterUnavailable: One ended, or the time is over.
    """
    deadline = time.monotonic() + seconds
    while not there():
        processes.require_alive()
        if time.monotonic() > deadline:
            msg = f"nothing of {what} within {seconds:g} s\n{processes.tails()}"
            raise ClusterUnavailable(msg)
        time.sleep(0.1)


def _inherit_cpuset(group: Path) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = group / name
        if file.exists() and not file.read_text().strip():
            file.write_text((group.parent / name).read_text())
