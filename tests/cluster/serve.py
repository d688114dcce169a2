"""Run a cluster as long as somebody holds the other end of standard input.

    python -m tests.cluster.serve ROOT

Prints one line of JSON when the cluster is ready. End of input or SIGTERM tears it
down: whoever started this may be killed at any moment and nothing is left.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from tests.cluster.binaries import ClusterUnavailable
from tests.cluster.node import Node


def main() -> int:
    """Serve one cluster; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        node = Node(Path(sys.argv[1]))
    except ClusterUnavailable as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    try:
        node.start()
        facts = {"name": node.name, "root": str(node.root), "prefix": node.prefix}
        print(json.dumps(facts), flush=True)
        sys.stdin.read()
    except ClusterUnavailable as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        node.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
