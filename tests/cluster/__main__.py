"""Clusters by hand: build, up, down, kubeconfig, run and demo."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster import keeper
from tests.cluster.binaries import (
    CONTROL_PLANE,
    NODE,
    ClusterUnavailable,
    programs,
    say,
)

if TYPE_CHECKING:
    from tests.cluster.cluster import BuiltCluster


def _running() -> BuiltCluster:
    found = keeper.running()
    if found is None:
        msg = "no cluster is up; `make cluster-up` starts one"
        raise ClusterUnavailable(msg)
    return found


def _run(command: list[str]) -> int:
    """Run a command inside the cluster's network, KUBECONFIG set."""
    found = _running()
    folder = Path(found.kubectl_binary).parent
    environment = os.environ | {
        "KUBECONFIG": found.kubeconfig,
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    words = found.command(*command)
    return subprocess.run(words, env=environment, check=False).returncode


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, text in (
        ("build", "build everything a cluster needs"),
        ("up", "start a cluster that stays"),
        ("down", "remove it"),
        ("kubeconfig", "print the path of its kubeconfig"),
    ):
        verbs.add_parser(name, help=text)
    for name, text in (
        ("run", "run a command inside its network"),
        ("demo", "the census in a pod, on runner pods"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("words", nargs=argparse.REMAINDER)
    verbs.add_parser("keep").add_argument("root")
    return parser.parse_args()


def main() -> int:
    """Do what was asked; return the exit code."""
    options = _parsed()
    if options.verb == "build":
        programs(CONTROL_PLANE + NODE)
    elif options.verb == "up":
        say(f"cluster {keeper.up().name} is up; `make cluster-down` removes it")
    elif options.verb == "down":
        say("cluster removed" if keeper.down() else "no cluster is up")
    elif options.verb == "kubeconfig":
        print(_running().kubeconfig)
    elif options.verb == "run":
        return _run(options.words)
    elif options.verb == "demo":
        from tests.cluster.demo import demo

        return demo(options.words)
    else:
        keeper.keep(Path(options.root))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClusterUnavailable as error:
        say(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted; everything that was started is removed")
        sys.exit(130)
