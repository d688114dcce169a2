"""The cache of built programs heals itself and is shared; recycled ids are spared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster import binaries, keeper, remains
from tests.cluster.binaries import ClusterUnavailable, Program, locked, programs
from tests.cluster.remains import (
    clean_up,
    record_node,
    record_process,
    recorded,
    start_time,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TINY = Program("tiny", "tiny", ".", 0.1)
MAIN = 'package main\n\nfunc main() { println("tiny") }\n'

needs_go = pytest.mark.skipif(
    shutil.which("go") is None, reason="no Go here; the real builds install one"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lend an empty cache folder, and a module that builds in a second."""
    source = tmp_path / "go" / "tiny"
    source.mkdir(parents=True)
    (source / "go.mod").write_text("module tiny\n\ngo 1.26\n")
    (source / "main.go").write_text(MAIN)
    monkeypatch.setattr(binaries, "SOURCES", tmp_path / "go")
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def _says(path: Path) -> str:
    return subprocess.run([path], capture_output=True, text=True, check=True).stderr


@needs_go
def test_second_use_builds_nothing(cache: Path) -> None:
    """What is intact is used as it is."""
    path = programs((TINY,), cache)["tiny"]
    made = path.stat().st_mtime_ns
    assert "tiny\n" == _says(path)
    assert made == programs((TINY,), cache)["tiny"].stat().st_mtime_ns


@needs_go
@pytest.mark.parametrize("damage", ["truncated", "altered", "no record", "bad record"])
def test_broken_program_is_built_again(cache: Path, damage: str) -> None:
    """One that is not what was built is never run."""
    path = programs((TINY,), cache)["tiny"]
    record = path.with_name("record.json")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "altered":
        path.write_text("#!/bin/sh\necho other >&2\n")
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("{")
    assert "tiny\n" == _says(programs((TINY,), cache)["tiny"])


@needs_go
def test_half_built_program_is_no_program(cache: Path) -> None:
    """What a killed build left is swept, and built again."""
    (cache / "build-killed" / "out").mkdir(parents=True)
    (cache / "build-killed" / "out" / "tiny").write_text("half")
    assert "tiny\n" == _says(programs((TINY,), cache)["tiny"])
    assert [] == list(cache.glob("build-*"))


@needs_go
def test_changed_source_is_another_program(cache: Path) -> None:
    """The key holds the module files: an edit never finds an old result."""
    before = programs((TINY,), cache)["tiny"]
    main = binaries.SOURCES / "tiny" / "main.go"
    main.write_text(MAIN.replace('"tiny"', '"other"'))
    after = programs((TINY,), cache)["tiny"]
    assert ("tiny\n", "other\n") == (_says(before), _says(after))


@needs_go
def test_module_without_its_sums_is_not_built(cache: Path) -> None:
    """Builds are read-only: a dependency without its checksum stops them."""
    (binaries.SOURCES / "tiny" / "go.mod").write_text(
        "module tiny\n\ngo 1.26\n\nrequire golang.org/x/sys v0.40.0\n"
    )
    main = binaries.SOURCES / "tiny" / "main.go"
    main.write_text('package main\n\nimport _ "golang.org/x/sys/cpu"\n' + MAIN[14:])
    with pytest.raises(ClusterUnavailable, match=r"missing go\.sum entry"):
        programs((TINY,), cache)
    assert [] == [path for path in cache.iterdir() if path.is_dir()]


def test_second_run_waits_for_the_first(cache: Path) -> None:
    """The lock is held across processes."""
    source = (
        "import sys, pathlib\n"
        "from tests.cluster.binaries import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('in', flush=True)\n"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", source, str(cache)]
    with locked(cache):
        second = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
        )
        assert second.stderr is not None
        assert "waiting" in second.stderr.readline()
        assert second.poll() is None
    assert ("in\n", "") == second.communicate(timeout=20)
    assert 0 == second.returncode


def test_cache_folder_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else may put programs where root will run them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert 0o700 == binaries.cache_folder().stat().st_mode & 0o777


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that has nothing to do with a cluster."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_clean_up_ends_recorded_processes(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    """A recorded process is ended and the folder removed."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    record_process(folder, stranger.pid, "sleep")
    assert {stranger.pid} == recorded(folder)
    clean_up(folder)
    assert (None, False) == (start_time(stranger.pid), folder.exists())


def test_clean_up_spares_a_recycled_process_id(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    """The same number with another start time is somebody else."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "processes").write_text(f"{stranger.pid} 12345 etcd\n")
    clean_up(folder)
    assert (None, False) == (stranger.poll(), folder.exists())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lend a folder in place of the host's settings, each of them 0."""
    settings = tmp_path / "sys"
    for key in remains.HOST_SETTINGS:
        (settings / key).parent.mkdir(parents=True, exist_ok=True)
        (settings / key).write_text("0\n")
    monkeypatch.setattr(remains, "_SYSCTL", settings)
    monkeypatch.setattr(remains, "HOST", tmp_path / "run")
    return settings


@pytest.mark.parametrize("first", [0, 1])
def test_last_of_two_clusters_puts_settings_back(
    tmp_path: Path, host: Path, first: int
) -> None:
    """What the first kubelet has set is never taken for what the host had."""
    panic = host / "kernel" / "panic"
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        record_node(folder, f"no-such-{folder.name}")
        panic.write_text("10")
    clean_up(folders.pop(first))
    assert "10" == panic.read_text()
    clean_up(folders.pop())
    assert "0\n" == panic.read_text()


def test_settings_return_when_the_other_cluster_is_dead(
    tmp_path: Path, host: Path, stranger: subprocess.Popen[bytes]
) -> None:
    """A note whose owner and processes have ended keeps nothing."""
    dead, folder = tmp_path / "dead", tmp_path / "cluster"
    for each in (dead, folder):
        each.mkdir()
        record_node(each, f"no-such-{each.name}")
        (host / "kernel" / "panic").write_text("10")
    note = {"pid": stranger.pid, "started": "12345", "folder": str(dead)}
    (remains.HOST / "no-such-dead.user").write_text(json.dumps(note))
    clean_up(folder)
    assert "0\n" == (host / "kernel" / "panic").read_text()


def test_down_spares_a_recycled_process_id(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stranger: subprocess.Popen[bytes],
) -> None:
    """The record of a keeper that has ended names nobody."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    record = {"pid": stranger.pid, "started": "12345", "root": str(tmp_path / "root")}
    path = binaries.cache_folder() / "cluster-up.json"
    path.write_text(json.dumps(record))
    assert (False, None) == (keeper.down(), stranger.poll())
    assert not path.exists()


def test_guard_acts_when_its_owner_is_killed(tmp_path: Path) -> None:
    """End of the pipe, without a word, means that the owner is dead."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    source = (
        "import os, sys, pathlib, subprocess\n"
        "from tests.cluster.remains import Guard, record_process\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "guard = Guard(folder)\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True,\n"
        "    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "record_process(folder, child.pid, 'sleep')\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).resolve().parents[1]
    owner = subprocess.run(
        [sys.executable, "-c", source, str(folder)],
        stdout=subprocess.PIPE,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )
    pid = int(owner.stdout)
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (None, False) == (start_time(pid), folder.exists())
