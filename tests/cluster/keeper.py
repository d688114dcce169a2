"""The cluster that stays: `up` leaves a keeper process behind, `down` ends it.

The keeper owns a built node like any test run does, with the same guard behind it.
Its process id is believed only together with its start time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.cluster.binaries import ClusterUnavailable, cache_folder, locked, say
from tests.cluster.cluster import STATE, BuiltCluster
from tests.cluster.remains import start_time

_RECORD = "cluster-up.json"


def running() -> BuiltCluster | None:
    """Return the cluster that `up` started, if it runs and is ready."""
    record = _record()
    if record is None:
        return None
    root = Path(record["root"])
    return BuiltCluster.load(root) if (root / STATE).exists() else None


def up() -> BuiltCluster:
    """Start the cluster that stays, or return the one that runs.

    Raises:
        ClusterUnavailable: It did not start; with the keeper's words.
    """
    folder = cache_folder() / "up"
    folder.mkdir(mode=0o700, exist_ok=True)
    with locked(folder):
        found = running()
        if found is not None:
            return found
        if _record() is not None:
            down()
        return _start(folder)


def _start(folder: Path) -> BuiltCluster:
    root = Path(tempfile.mkdtemp(prefix="kubetls-node-"))
    log = folder / "keeper.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster", "keep", str(root)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
        )
    record = {"pid": process.pid, "started": start_time(process.pid), "root": str(root)}
    (cache_folder() / _RECORD).write_text(json.dumps(record))
    try:
        _await_state(process, root, log)
    except BaseException:
        down()  # also after Ctrl-C: the keeper does not hear it
        _remove_empty(root)
        raise
    return BuiltCluster.load(root)


def _await_state(process: subprocess.Popen[bytes], root: Path, log: Path) -> None:
    """Show the keeper's words until its cluster is ready."""
    shown = 0
    while not (root / STATE).exists():
        ended = process.poll() is not None
        lines = log.read_text(errors="replace").splitlines()
        for line in lines[shown:]:
            print(line, file=sys.stderr, flush=True)
        shown = len(lines)
        if ended:
            msg = f"the cluster did not start: {lines[-1] if lines else 'no word'}"
            raise ClusterUnavailable(msg)
        time.sleep(0.2)


def down() -> bool:
    """End the cluster that `up` started; tell whether there was one."""
    record = _record()
    (cache_folder() / _RECORD).unlink(missing_ok=True)
    if record is None:
        return False
    pid, root = record["pid"], Path(record["root"])
    for number, seconds in ((signal.SIGTERM, 40), (signal.SIGKILL, 20)):
        if start_time(pid) == record["started"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if start_time(pid) != record["started"]:
                _remove_empty(root)
                if not root.exists():
                    return True
            time.sleep(0.1)
    msg = f"the cluster below {root} did not end"
    raise ClusterUnavailable(msg)


def _remove_empty(root: Path) -> None:
    """Remove the folder of a keeper that ended before it had put anything there."""
    with contextlib.suppress(OSError):
        root.rmdir()


def _record() -> dict[str, Any] | None:
    """Return the keeper's record while that very process runs."""
    try:
        record = json.loads((cache_folder() / _RECORD).read_text())
    except (OSError, ValueError):
        return None
    alive = start_time(record["pid"]) == record["started"]
    return record if alive else None


def keep(root: Path) -> None:
    """Own a cluster until SIGTERM; the body of the keeper process."""
    from tests.cluster.node import Node

    def end(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with Node(root):
        say("the cluster stays until: make cluster-down")
        while True:
            signal.pause()
