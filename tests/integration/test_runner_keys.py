"""Rule 15: keys of TLS links are where they are used, and nowhere else.

Looked for in the memory of a real runner's processes, byte by byte.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.stage import Play, Stage, staged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.control_plane

# Behind the fork of the zygote, the agent alone has its TLS secrets written to a file.
LOGGED_AGENT = """
import os, sys
import flame_backend.runner.__main__ as runner

agent, fork = os.getpid(), os.fork

def forked():
    pid = fork()
    if pid and os.getpid() == agent:
        import ssl
        wrap = ssl.SSLContext.wrap_socket
        def logged(self, *args, **options):
            self.keylog_filename = KEYS
            return wrap(self, *args, **options)
        ssl.SSLContext.wrap_socket = logged
    return pid

os.fork = forked
sys.exit(runner.main())
"""


@pytest.fixture
def stage(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    yield from staged(control_plane, tmp_path, monkeypatch)


def secrets_of(log: Path) -> list[bytes]:
    """Return the application secrets of a key log (NSS format)."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [bytes.fromhex(line[2]) for line in lines if "TRAFFIC_SECRET_0" in line[0]]


def holds(pid: int, needles: list[bytes]) -> bool:
    """Say whether any of these bytes stand in a process' memory."""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, rights, *_ = line.split()
            if "rw" not in rights:
                continue
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except (OSError, OverflowError, ValueError):
                continue  # [vvar] and the like
            if any(needle in data for needle in needles):
                return True
    return False


def processes(_: object) -> tuple[int, int]:
    return os.getpid(), os.getppid()


def test_agents_keys_are_in_no_process_that_runs_the_apps_code(
    stage: Stage, tmp_path: Path
) -> None:
    """Neither the zygote, forked before there was a link, nor a slot with its own."""
    log = tmp_path / "keys"
    program = LOGGED_AGENT.replace("KEYS", repr(str(log)))
    with Play(stage, function=processes, argument=0) as play:
        name = play.runner()["metadata"]["name"]
        agent = stage.agent(name, [sys.executable, "-P", "-c", program])
        slot, zygote = play.call.result(20)
        keys = secrets_of(log)
        assert len(keys) >= 2
        try:
            assert holds(agent.pid, keys), "they are where they are looked for"
        except PermissionError:
            pytest.skip("other processes' memory may not be read here")
        assert not holds(zygote, keys)
        assert not holds(slot, keys)


def test_parents_key_is_in_nothing_that_a_runner_gets(stage: Stage) -> None:
    """Not in its pod's manifest, not in its environment: the certificate is public."""
    with Play(stage) as play:
        pod = play.runner()
        text = json.dumps(pod)
        assert "BEGIN CERTIFICATE" in text
        assert "PRIVATE" not in text
        agent = stage.agent(pod["metadata"]["name"])
        assert 1 == play.call.result(20)
        assert b"PRIVATE" not in Path(f"/proc/{agent.pid}/environ").read_bytes()
