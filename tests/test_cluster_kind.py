"""The kind provider without a cluster: what is missing is named, nothing stays behind.

`docker` and `kind` are scripts here; the real ones run in `make test-kind`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster import cluster, kind
from tests.cluster.binaries import ClusterUnavailable
from tests.cluster.remains import Guard, record_kind

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Lend a maker of programs, the only ones on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return make


ANSWERS = {"docker": "echo 2", "kind": "echo here"}


@pytest.mark.parametrize("missing", ["docker", "kind"])
def test_missing_program_is_named_with_its_source(
    tool: Callable[[str, str], None], missing: str
) -> None:
    """One line that says where it comes from."""
    for name in ANSWERS.keys() - {missing}:
        tool(name, ANSWERS[name])
    with pytest.raises(ClusterUnavailable, match=f"needs {missing}.*https://"):
        kind.require_tools()


def test_silent_daemon_is_named(tool: Callable[[str, str], None]) -> None:
    """With docker's own words."""
    tool("kind", "exit 0")
    tool("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(ClusterUnavailable, match=r"answers: .*Cannot connect to"):
        kind.require_tools()


def test_named_cluster_that_is_not_up_is_refused(
    tool: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which ones there are, and creates none."""
    for name, script in ANSWERS.items():
        tool(name, script)
    monkeypatch.setenv(cluster.KIND_VARIABLE, "there")
    with (
        pytest.raises(ClusterUnavailable, match="names 'there', and kind has here"),
        kind.kind_cluster(),
    ):
        pass


def test_run_without_docker_fails_at_once_and_says_why() -> None:
    """Nothing is collected, built or skipped."""
    environment = os.environ | {cluster.PROVIDER_VARIABLE: "kind", "PATH": "/none"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/integration", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 4 == done.returncode, done.stdout + done.stderr
    assert "a kind cluster needs docker, which is not on PATH" in done.stderr


@pytest.mark.parametrize(("version", "patched"), [("1", True), ("2", False)])
def test_old_cgroups_change_the_configuration(version: str, *, patched: bool) -> None:
    """And nothing else does: a control plane and two workers."""
    config = kind.cluster_config(version)
    nodes = [{"role": role} for role in ("control-plane", "worker", "worker")]
    assert nodes == config["nodes"]
    assert patched == ("failCgroupV1: false" in str(config))


def test_cluster_of_a_killed_owner_is_deleted(
    tool: Callable[[str, str], None], tmp_path: Path
) -> None:
    """By its name and no other, without a look into the user's kubeconfig."""
    told = tmp_path / "told"
    tool("kind", f'echo "$@" > {told}')
    folder = tmp_path / "cluster"
    folder.mkdir()
    record_kind(folder, "kubetls-abc")
    guard = Guard(folder)
    guard.dismiss()
    assert folder.exists()
    guard = Guard(folder)
    # What a killed owner does to it: its end of the pipe closes.
    assert guard._process.stdin is not None
    guard._process.stdin.close()
    deadline = time.monotonic() + 10
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    guard._process.wait(5)
    words = told.read_text().split()
    assert ["delete", "cluster", "--name", "kubetls-abc", "--kubeconfig"] == words[:5]
