"""What a node needs of its host, and the configuration of its programs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.cluster import image
from tests.cluster.binaries import ClusterUnavailable, say
from tests.cluster.cluster import run

POD_RANGE = "10.244.0.0/24"
CNI_PLUGINS = Path("/usr/lib/cni")


def require_packages() -> None:
    """Have the Debian packages of a node; install them only in CI.

    Raises:
        ClusterUnavailable: Something is missing; with the line that installs it.
    """
    if os.geteuid() != 0:
        msg = "a node needs root (network namespace, containers); or: make test-kind"
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
        run(command.split(), seconds=600)


def kubelet_config(root: Path, name: str, socket: Path) -> dict[str, object]:
    """Return the kubelet's configuration: no host-wide limits, its own cgroups."""
    plane = root / "control-plane"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": f"{plane}/ca.crt"},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{name}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%"},
        "resolvConf": "",
        "tlsCertFile": f"{plane}/kubelet-serving.crt",
        "tlsPrivateKeyFile": f"{plane}/kubelet-serving.key",
        "podLogsDir": f"{root}/pod-logs",
        "volumePluginDir": f"{root}/volume-plugins",
        "registerWithTaints": [],
        "syncFrequency": "10s",
    }


def cni_config(ipam: Path) -> str:
    """Return the pods' network: one bridge, addresses from a folder of ours."""
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


def containerd_config(root: Path, cni: Path) -> str:
    """Return containerd's configuration: everything below the cluster's folder."""
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
  netns_mounts_under_state_dir = true
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
