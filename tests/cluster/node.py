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
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.cluster import image
from tests.cluster.binaries import (
    CONTROL_PLANE,
    NODE,
    ClusterUnavailable,
    programs,
    say,
)
from tests.cluster.control_plane import ControlPlane, Processes

NODE_ADDRESS = "10.99.0.1"
SERVICE_ADDRESS = "10.96.0.1"
POD_RANGE = "10.244.0.0/24"
PORT = 6443
PACKAGES = ("runc", "containernetworking-plugins", "iptables", "iproute2")
CNI_PLUGINS = Path("/usr/lib/cni")

# The kubelet sets these for the whole host; they are put back at the end.
HOST_SYSCTLS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")


def require_packages() -> None:
    """Have the Debian packages of a node; install them only in CI.

    Raises:
        ClusterUnavailable: Something is missing; with the line that installs it.
    """
    if os.geteuid() != 0:
        msg = "a node needs root (network namespace, containers)"
        raise ClusterUnavailable(msg)
    missing = [
        name
        for name, there in (
            ("runc", shutil.which("runc")),
            ("containernetworking-plugins", (CNI_PLUGINS / "bridge").exists()),
            ("iptables", shutil.which("iptables")),
            ("iproute2", shutil.which("ip")),
        )
        if not there
    ]
    if not missing:
        return
    line = f"apt-get install -y {' '.join(missing)}"
    if os.environ.get("CI") != "true" or shutil.which("apt-get") is None:
        msg = f"a node needs Debian packages; as root: {line}"
        raise ClusterUnavailable(msg)
    say(f"CI: {line}")
    for command in ("apt-get update -q", f"{line} -q --no-install-recommends"):
        done = subprocess.run(
            command.split(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            msg = f"{command} failed: {done.stderr[-500:]}"
            raise ClusterUnavailable(msg)


class Node:
    """A one-node cluster: control plane, controller manager, scheduler, node."""

    def __init__(self, root: Path) -> None:
        require_packages()
        self.root = root
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.name = f"ktls-{secrets.token_hex(3)}"
        self.netns = Path("/run/netns") / self.name
        self.binaries = programs(CONTROL_PLANE + NODE)
        self.cgroup = f"/{self.name}"
        self._sysctls: dict[str, str] = {}
        (root / "state.json").write_text(
            json.dumps({"name": self.name, "pid": os.getpid()})
        )
        self.prefix = ("nsenter", f"--net={self.netns}", "--")
        self.control_plane = ControlPlane(
            root / "control-plane",
            prefix=self.prefix,
            port=PORT,
            node_address=NODE_ADDRESS,
        )
        self.processes = Processes(root, self.prefix)

    # ------------------------------------------------------------------ up

    def start(self) -> None:
        """Start everything and wait until the node is Ready."""
        started = time.monotonic()
        self._make_network()
        self.control_plane.start()
        say(f"API server ready after {time.monotonic() - started:.1f} s")
        self._start_controllers()
        self._start_containerd()
        self._load_images()
        self._start_kubelet()
        self._wait_ready()
        say(f"node ready after {time.monotonic() - started:.1f} s")

    def _make_network(self) -> None:
        _run("ip", "netns", "add", self.name)
        inside = self.run_in_namespace
        inside("ip", "link", "set", "lo", "up")
        inside("ip", "addr", "add", f"{SERVICE_ADDRESS}/32", "dev", "lo")
        # A bridge without ports stands in for the node's network card.
        inside("ip", "link", "add", "node0", "type", "bridge")
        inside("ip", "addr", "add", f"{NODE_ADDRESS}/24", "dev", "node0")
        inside("ip", "link", "set", "node0", "up")
        inside("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        for chain in ("PREROUTING", "OUTPUT"):
            inside(
                "iptables", "-w", "-t", "nat", "-A", chain, "-d", SERVICE_ADDRESS,
                "-p", "tcp", "--dport", "443", "-j", "REDIRECT",
                "--to-ports", str(PORT),
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
        (cni / "10-bridge.conflist").write_text(_cni_config(self.root / "ipam"))
        config = self.root / "containerd.toml"
        config.write_text(_containerd_config(self.root, cni))
        bin_folder = self.root / "bin"
        bin_folder.mkdir()
        shim = "containerd-shim-runc-v2"
        (bin_folder / shim).symlink_to(self.binaries[shim])
        self.socket = self.root / "containerd.sock"
        self.processes.start(
            "containerd",
            str(self.binaries["containerd"]),
            f"--config={config}",
            env={"PATH": f"{bin_folder}:{os.environ['PATH']}"},
        )
        deadline = time.monotonic() + 20
        while not self.socket.exists():
            self.processes.require_alive()
            if time.monotonic() > deadline:
                msg = "containerd made no socket within 20 s"
                raise ClusterUnavailable(msg)
            time.sleep(0.1)

    def _load_images(self) -> None:
        self.load_image(image.pause_image(self.binaries["pause"], self.root))
        self.load_image(image.python_image(self.root))

    def load_image(self, tar: Path) -> None:
        """Import an image into the node's container runtime."""
        _run(
            str(self.binaries["ctr"]), "--address", str(self.socket),
            "--namespace", "k8s.io", "images", "import", "--local", str(tar),
        )  # fmt: skip

    def _start_kubelet(self) -> None:
        say("starting a kubelet; it sets vm.overcommit_memory, kernel.panic and "
            "kernel.panic_on_oops for this host, put back at the end")  # fmt: skip
        for name in HOST_SYSCTLS:
            self._sysctls[name] = (Path("/proc/sys") / name).read_text()
        for hierarchy in _cgroup_hierarchies():
            with contextlib.suppress(OSError):
                (hierarchy / self.name).mkdir(exist_ok=True)
                _inherit_cpuset(hierarchy / self.name)
        plane = self.control_plane
        kubeconfig = self._kubeconfig(
            "kubelet", f"system:node:{self.name}", "system:nodes"
        )
        serving = plane.authority.issue(
            f"system:node:{self.name}",
            organization="system:nodes",
            names=(self.name,),
            addresses=(NODE_ADDRESS,),
        )
        plane.pair("kubelet-serving", serving)
        config = self.root / "kubelet.json"
        config.write_text(json.dumps(self._kubelet_config()))
        self.processes.start(
            "kubelet",
            str(self.binaries["kubelet"]),
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={NODE_ADDRESS}",
            f"--root-dir={self.root}/kubelet",
            f"--cert-dir={self.root}/kubelet-pki",
        )

    def _kubelet_config(self) -> dict[str, object]:
        plane = self.control_plane.root
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "x509": {"clientCAFile": f"{plane}/ca.crt"},
                "webhook": {"enabled": True},
                "anonymous": {"enabled": False},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup,
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%"},
            "resolvConf": "",
            "tlsCertFile": f"{plane}/kubelet-serving.crt",
            "tlsPrivateKeyFile": f"{plane}/kubelet-serving.key",
            "podLogsDir": f"{self.root}/pod-logs",
            "volumePluginDir": f"{self.root}/volume-plugins",
            "registerWithTaints": [],
            "syncFrequency": "10s",
        }

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 60
        query = (
            "get", "node", self.name, "-o",
            "jsonpath={.status.conditions[?(@.type=='Ready')].status}",
        )  # fmt: skip
        while time.monotonic() < deadline:
            self.processes.require_alive()
            with contextlib.suppress(ClusterUnavailable):
                if self.kubectl(*query) == "True":
                    return
            time.sleep(0.3)
        log = (self.root / "kubelet.log").read_text(errors="replace")
        msg = "the node was not Ready within 60 s; kubelet says:\n" + "\n".join(
            log.splitlines()[-10:]
        )
        raise ClusterUnavailable(msg)

    # ------------------------------------------------------------------ clients

    def kubectl(self, *args: str, stdin: str | None = None, seconds: float = 60) -> str:
        """Run kubectl as admin."""
        return self.control_plane.kubectl(*args, stdin=stdin, seconds=seconds)

    def run_in_namespace(self, *command: str) -> str:
        """Run a command inside the cluster's network."""
        return _run(*self.prefix, *command)

    # ------------------------------------------------------------------ down

    def stop(self) -> None:
        """End and remove everything that was made here."""
        with contextlib.suppress(ClusterUnavailable):
            self.kubectl(
                "delete", "pods", "--all", "--all-namespaces", "--force",
                "--grace-period=0", "--wait=false", seconds=10,
            )  # fmt: skip
            self._await_no_pods()
        self.processes.stop("kubelet")
        self._end_containers()
        self.processes.stop_all()
        self.control_plane.stop()
        clean_up(self.name, self.root)
        for name, value in self._sysctls.items():
            with contextlib.suppress(OSError):
                (Path("/proc/sys") / name).write_text(value)

    def _await_no_pods(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and _members(self.name):
            time.sleep(0.2)

    def _end_containers(self) -> None:
        for pid in _members(self.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def clean_up(name: str, root: Path) -> None:
    """Remove a cluster's processes, mounts, cgroups, namespace and folder by name.

    Works from the name and folder alone, so it also serves clusters whose owner was
    killed.
    """
    for _ in range(20):
        members = _members(name) | _commands_below(root)
        if not members:
            break
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    below = [
        line.split()[1] for line in mounts if line.split()[1].startswith(f"{root}/")
    ]
    for place in sorted(below, key=len, reverse=True):
        subprocess.run(["umount", "-l", place], capture_output=True, check=False)
    for hierarchy in _cgroup_hierarchies():
        home = hierarchy / name
        folders = sorted(home.rglob("*/"), key=lambda path: -len(path.parts))
        for folder in [*folders, home]:
            with contextlib.suppress(OSError):
                folder.rmdir()
    with contextlib.suppress(ClusterUnavailable):
        _run("ip", "netns", "delete", name)
    shutil.rmtree(root, ignore_errors=True)


def _members(name: str) -> set[int]:
    """Return the processes in the cluster's own cgroups: its containers."""
    found: set[int] = set()
    for hierarchy in _cgroup_hierarchies():
        for file in (hierarchy / name).rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found.update(map(int, file.read_text().split()))
    return found


def _commands_below(root: Path) -> set[int]:
    """Return processes whose command line names the cluster's folder (shims)."""
    found: set[int] = set()
    marker = f"{root}/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if marker in command and b"containerd-shim" in command:
                    found.add(int(entry.name))
    return found


def _cgroup_hierarchies() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [path for path in root.iterdir() if path.is_dir()]


def _inherit_cpuset(group: Path) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = group / name
        if file.exists() and not file.read_text().strip():
            file.write_text((group.parent / name).read_text())


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{' '.join(command)}: {done.stderr.strip()[-800:]}"
        raise ClusterUnavailable(msg)
    return done.stdout


def _cni_config(ipam: Path) -> str:
    return json.dumps(
        {
            "cniVersion": "1.0.0",
            "name": "bridge",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(ipam),
                        "ranges": [[{"subnet": POD_RANGE}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "loopback"},
            ],
        }
    )


def _containerd_config(root: Path, cni: Path) -> str:
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot lower the score.
    return f"""\
version = 3
root = "{root}/containerd"
state = "{root}/containerd-state"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "{root}/containerd.sock"
[ttrpc]
  address = "{root}/containerd.sock.ttrpc"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{image.PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{CNI_PLUGINS}"]
  conf_dir = "{cni}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "{shutil.which("runc")}"
  SystemdCgroup = false
"""
