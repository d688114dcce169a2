"""Clusters by hand: python -m tests.cluster up | down | kubeconfig | run ... | demo."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.cluster.binaries import CONTROL_PLANE, NODE, cache_folder, programs, say
from tests.cluster.node import clean_up

ROOT = Path(__file__).resolve().parents[2]


def _state() -> Path:
    return cache_folder() / "cluster-up.json"


def _read() -> dict[str, object] | None:
    with suppress(OSError, ValueError):
        found: dict[str, object] = json.loads(_state().read_text())
        return found
    return None


def _started(pid: int) -> str:
    """Return a process' start time, so that a recycled number is never taken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def up() -> int:
    """Start a cluster that stays."""
    known = _read()
    if known and _started(int(str(known["pid"]))) == known["started"]:
        say(f"a cluster is up already: {known['name']}")
        return 0
    root = Path(tempfile.mkdtemp(prefix="ktls-"))
    # A pipe whose writing end the server itself holds: its input never ends.
    reading, writing = os.pipe()
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.serve", str(root)],
        cwd=ROOT,
        stdin=reading,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[writing],
        start_new_session=True,
    )
    os.close(reading)
    os.close(writing)
    assert server.stdout is not None
    facts = json.loads(server.stdout.readline() or '{"error":"it did not start"}')
    if "error" in facts:
        say(facts["error"])
        return 1
    facts |= {"pid": server.pid, "started": _started(server.pid)}
    _state().write_text(json.dumps(facts))
    say(f"cluster {facts['name']} is up; `make cluster-down` removes it")
    return 0


def down() -> int:
    """Remove the cluster that stays."""
    known = _read()
    if known is None:
        say("no cluster is up")
        return 0
    pid = int(str(known["pid"]))
    if _started(pid) == known["started"]:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while _started(pid) == known["started"] and time.monotonic() < deadline:
            time.sleep(0.2)
    root = Path(str(known["root"]))
    if root.exists():
        clean_up(str(known["name"]), root)
    shutil.rmtree(root, ignore_errors=True)
    _state().unlink(missing_ok=True)
    say("cluster removed")
    return 0


def kubeconfig() -> int:
    """Print the path of the cluster's kubeconfig."""
    known = _read()
    if known is None:
        say("no cluster is up; `make cluster-up` starts one")
        return 1
    print(Path(str(known["root"])) / "control-plane" / "admin.kubeconfig")
    return 0


def run(command: list[str]) -> int:
    """Run a command inside the cluster's network, KUBECONFIG set."""
    known = _read()
    if known is None:
        say("no cluster is up; `make cluster-up` starts one")
        return 1
    home = Path(str(known["root"])) / "control-plane" / "admin.kubeconfig"
    kubectl = programs(CONTROL_PLANE)["kubectl"]
    path = f"{kubectl.parent}:{os.environ['PATH']}"
    environment = os.environ | {"KUBECONFIG": str(home), "PATH": path}
    prefix = [str(part) for part in known["prefix"]]  # type: ignore[attr-defined]
    return subprocess.run([*prefix, *command], env=environment, check=False).returncode


def main() -> int:
    """Parse and do."""
    parser = argparse.ArgumentParser(prog="tests.cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, text in (
        ("build", "build everything a cluster needs"),
        ("up", "start a cluster that stays"),
        ("down", "remove it"),
        ("kubeconfig", "print the path of its kubeconfig"),
        ("demo", "the census in a private cluster"),
    ):
        verbs.add_parser(name, help=text)
    runner = verbs.add_parser("run", help="run a command inside its network")
    runner.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.verb == "build":
        programs(CONTROL_PLANE + NODE)
        return 0
    if options.verb == "demo":
        from tests.cluster.demo import main as demo

        return demo()
    if options.verb == "run":
        return run(options.command)
    return {"up": up, "down": down, "kubeconfig": kubeconfig}[options.verb]()


if __name__ == "__main__":
    sys.exit(main())
