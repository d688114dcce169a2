"""What a cluster leaves on a host, and the removal of exactly that.

Runs as a small process of its own beside each cluster, holding a pipe from the owner:
when the owner dies, however, the pipe ends and the remains go. It works from the
cluster's folder alone: recorded process ids with their start times, so that a number
the kernel has given to somebody else is never signalled. Standard library only; it
must start fast and depend on nothing that may change under it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROCESSES = "processes"
STATE = "remains.json"
KIND = "kind.json"
_DONE = b"done"

# A kubelet sets these for the whole host. What they were before the first cluster is
# kept here, and put back by the last one: two may run at once. /run goes at a reboot.
HOST_SETTINGS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
HOST = Path("/run/kubetls-tests")
_SYSCTL = Path("/proc/sys")


def start_time(pid: int) -> str | None:
    """Return when a process started, in the kernel's ticks; None without one.

    proc(5): the 22nd field; the name, which may hold spaces, ends at the last ")".
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def record_process(folder: Path, pid: int, name: str) -> None:
    """Note a process that was started, before anything can go wrong with it."""
    with (folder / PROCESSES).open("a") as file:
        file.write(f"{pid} {start_time(pid)} {name}\n")


def record_node(folder: Path, name: str) -> None:
    """Note the name of a node's cgroups and network, and keep the host's settings."""
    part = folder / f"{STATE}.part"
    part.write_text(json.dumps({"name": name}))
    part.rename(folder / STATE)
    with _host_locked():
        before = HOST / "settings.json"
        if not before.exists():
            found = {key: (_SYSCTL / key).read_text() for key in HOST_SETTINGS}
            before.write_text(json.dumps(found))
        owner = {"pid": os.getpid(), "started": start_time(os.getpid())}
        user = HOST / f"{name}.user"
        user.write_text(json.dumps(owner | {"folder": str(folder)}))


def record_kind(folder: Path, name: str) -> None:
    """Note a kind cluster and the program that deletes it, before it is created."""
    noted = {"name": name, "kind": shutil.which("kind")}
    (folder / KIND).write_text(json.dumps(noted))


def _release_settings(name: str) -> None:
    """Put the host's settings back, unless another cluster still runs."""
    with _host_locked():
        (HOST / f"{name}.user").unlink(missing_ok=True)
        if any(_in_use(user) for user in HOST.glob("*.user")):
            return
        before = HOST / "settings.json"
        with contextlib.suppress(OSError, ValueError):
            for key, value in json.loads(before.read_text()).items():
                (_SYSCTL / key).write_text(value)
        before.unlink(missing_ok=True)
        for user in HOST.glob("*.user"):
            user.unlink()


def _in_use(user: Path) -> bool:
    """Tell whether a cluster that has noted itself has an owner or processes."""
    try:
        noted = json.loads(user.read_text())
    except (OSError, ValueError):
        return False
    alive: bool = start_time(noted["pid"]) == noted["started"]
    return alive or bool(recorded(Path(noted["folder"])))


@contextlib.contextmanager
def _host_locked() -> Iterator[None]:
    HOST.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (HOST / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def recorded(folder: Path) -> set[int]:
    """Return the recorded processes that still run."""
    found = set()
    for file in (*folder.glob(PROCESSES), *folder.glob(f"*/{PROCESSES}")):
        with contextlib.suppress(FileNotFoundError):  # another cluster's, that goes
            for line in file.read_text().splitlines():
                pid, started, _ = line.split(" ", 2)
                if start_time(int(pid)) == started:
                    found.add(int(pid))
    return found


class Guard:
    """The process that removes a cluster when its owner dies."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._process.pid

    def dismiss(self) -> None:
        """End the guard: the owner has cleaned up itself."""
        with contextlib.suppress(OSError):
            self._process.communicate(_DONE)


def clean_up(folder: Path) -> None:
    """End the processes of a cluster; remove what it left, and its folder."""
    if (folder / KIND).exists():
        _delete_kind(folder)
        return
    name = ""
    with contextlib.suppress(OSError, ValueError):
        name = json.loads((folder / STATE).read_text())["name"]
    _end(folder, name)
    below = mounts_below(folder)
    for place in sorted(below, key=len, reverse=True):
        subprocess.run(["umount", "-l", place], capture_output=True, check=False)
    if name:
        _remove_cgroups(name)
        subprocess.run(
            ["ip", "netns", "delete", name], capture_output=True, check=False
        )
        _release_settings(name)
    # With something still mounted below, removal would reach into it.
    if not mounts_below(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _delete_kind(folder: Path) -> None:
    """Delete a kind cluster: Docker's containers and volumes, nothing of the host's."""
    noted = json.loads((folder / KIND).read_text())
    # Without the option kind would look into the user's own kubeconfig.
    subprocess.run(
        [
            noted["kind"], "delete", "cluster", "--name", noted["name"],
            "--kubeconfig", str(folder / "none"),
        ],
        capture_output=True,
        check=False,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)


def _end(folder: Path, name: str) -> None:
    """Kill until nothing is left: shims and containers are no children of ours."""
    for _ in range(50):
        members = recorded(folder) | _shims(folder)
        members |= cgroup_members(name) | _network_members(name)
        if not members:
            return
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def mounts_below(folder: Path) -> list[str]:
    """Return what is mounted below a folder."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [
        line.split()[1] for line in lines if line.split()[1].startswith(f"{folder}/")
    ]


def cgroup_members(name: str) -> set[int]:
    """Return the processes in a cluster's own cgroups: its containers."""
    found: set[int] = set()
    for hierarchy in cgroup_hierarchies() if name else ():
        for folder in _folders(hierarchy / name):
            with contextlib.suppress(OSError):
                found.update(map(int, (folder / "cgroup.procs").read_text().split()))
    return found


def _shims(folder: Path) -> set[int]:
    """Return the container shims whose command names the cluster's folder."""
    found: set[int] = set()
    marker = f"{folder}/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if marker in command and b"containerd-shim" in command.split(b"\0")[0]:
                    found.add(int(entry.name))
    return found


def _network_members(name: str) -> set[int]:
    """Return the processes in a cluster's network, such as a killed test's kubectl."""
    found: set[int] = set()
    if not name or not (place := Path("/run/netns", name)).exists():
        return found
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if (entry / "ns" / "net").samefile(place):
                    found.add(int(entry.name))
    return found


def cgroup_hierarchies() -> list[Path]:
    """Return the cgroup mounts: one with version 2, several with version 1."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]


def _folders(home: Path) -> list[Path]:
    """Return a folder and all below it, the lowest first.

    A kubelet, or the kernel, may remove some meanwhile: walk() passes over those,
    glob() raises.
    """
    return [Path(found) for found, _, _ in os.walk(home, topdown=False)]


def _remove_cgroups(name: str) -> None:
    for hierarchy in cgroup_hierarchies():
        for folder in _folders(hierarchy / name):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _wait_for_owner(folder: Path) -> None:
    """Clean up at the end of the pipe, unless the owner said that it has."""
    if sys.stdin.buffer.read() != _DONE:
        clean_up(folder)


if __name__ == "__main__":
    _wait_for_owner(Path(sys.argv[1]))
