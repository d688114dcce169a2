"""OCI images without a registry: tars made from files of this machine.

The Python image is this interpreter with its standard library, the shared libraries it
and every extension needs, the project's runtime dependencies and packages, and the
examples. Two layers: interpreter and dependencies (cached by content), and the app.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from tests.cluster.binaries import cache_folder, locked, say

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/kubetls-test:1"
PAUSE_IMAGE = "localhost/pause:1"
PYTHON = "/usr/local/bin/python3"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

# No distribution's images have them, and nothing here imports them.
_LEFT_OUT = {
    "__pycache__", "ensurepip", "idlelib", "lib2to3", "site-packages", "dist-packages",
    "test", "tests", "tkinter", "turtledemo",
}  # fmt: skip
_ENTRIES = ("kubetls", "flame_backend", "examples")


def _blob(folder: Path, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    (folder / digest).write_bytes(content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


def write_image(
    target: Path, name: str, layers: list[Path], command: list[str], path: str
) -> None:
    """Write an OCI image of uncompressed layers."""
    with tempfile.TemporaryDirectory() as scratch:
        blobs = Path(scratch)
        digests = []
        descriptors = []
        for layer in layers:
            with layer.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests.append(f"sha256:{digest}")
            descriptors.append(
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": f"sha256:{digest}",
                    "size": layer.stat().st_size,
                }
            )
        machine = platform.machine()
        config = {
            "architecture": _ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "config": {
                "Env": [f"PATH={path}", "PYTHONUNBUFFERED=1"],
                "Entrypoint": command,
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": digests},
        }
        config_blob = _blob(blobs, json.dumps(config).encode()) | {
            "mediaType": "application/vnd.oci.image.config.v1+json"
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config_blob,
            "layers": descriptors,
        }
        manifest_blob = _blob(blobs, json.dumps(manifest).encode()) | {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name.rpartition(":")[2],
            },
        }
        index = {"schemaVersion": 2, "manifests": [manifest_blob]}
        with tarfile.open(target, "w") as tar:
            _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            _add(tar, "index.json", json.dumps(index).encode())
            for blob in sorted(blobs.iterdir()):
                tar.add(blob, f"blobs/sha256/{blob.name}", filter=_plain)
            for layer, digest in zip(layers, digests, strict=True):
                tar.add(layer, f"blobs/sha256/{digest[7:]}", filter=_plain)


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))


def pause_image(binary: Path, folder: Path) -> Path:
    """Return the tar of the pause image."""
    layer, target = folder / "pause-layer.tar", folder / "pause.tar"
    with tarfile.open(layer, "w") as tar:
        _add(tar, "pause", binary.read_bytes(), 0o755)
    write_image(target, PAUSE_IMAGE, [layer], ["/pause"], "/")
    return target


def python_image(folder: Path) -> Path:
    """Return the tar of the Python image with the packages as they stand now."""
    base = _base_layer()
    app, target = folder / "app-layer.tar", folder / "python.tar"
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        site = tree / _site_packages().lstrip("/")
        for name in ("kubetls", "flame_backend"):
            _copy(ROOT / name, site / name)
        _copy(ROOT / "examples", tree / "app" / "examples")
        apps = ROOT / "tests" / "integration" / "apps"
        if apps.exists():
            _copy(apps, tree / "app" / "apps")
        _compile(tree)
        _pack(tree, app)
    write_image(target, IMAGE, [base, app], [], "/usr/local/bin:/usr/bin:/bin")
    return target


def _site_packages() -> str:
    major, minor = sys.version_info[:2]
    return f"/usr/local/lib/python{major}.{minor}/site-packages"


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
    )


def _compile(tree: Path) -> None:
    # Without .pyc files every start costs 100 ms more; unchecked, as the files'
    # times are not kept. A fresh process: what this one has interned would show.
    subprocess.run(
        [
            sys.executable, "-I", "-m", "compileall", "-q",
            "--invalidation-mode", "unchecked-hash", "-s", str(tree), str(tree),
        ],
        check=False,
    )  # fmt: skip


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who made an entry and when: the same files make the same tar."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    return info


def _pack(tree: Path, target: Path) -> None:
    with tarfile.open(target, "w") as tar:
        for entry in sorted(tree.iterdir()):
            tar.add(entry, entry.name, filter=_plain)


def _runtime_distributions() -> list[importlib.metadata.Distribution]:
    """Return what the project needs at run time, dependencies of dependencies too."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = ["kubetls"]
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution
        for requirement in distribution.requires or ():
            name, _, condition = requirement.partition(";")
            # cffi is wanted everywhere but on PyPy; extras are for tests and tools.
            skipped = "extra ==" in condition or "python_version" in condition
            match = re.match(r"[A-Za-z0-9._-]+", name)
            if match and not skipped:
                wanted.append(match[0])
    del found["kubetls"]
    return list(found.values())


def _base_layer() -> Path:
    """Return the layer of interpreter and dependencies, made once for each set."""
    distributions = _runtime_distributions()
    key = hashlib.sha256(
        "\n".join(
            [
                sys.version,
                sys.executable,
                Path(__file__).read_text(encoding="utf-8"),
                *sorted(f"{d.name} {d.version}" for d in distributions),
            ]
        ).encode()
    ).hexdigest()[:16]
    root = cache_folder()
    target = root / f"python-layer-{key}.tar"
    with locked(root):
        if not target.exists():
            say("making the Python image's base layer")
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                tree = Path(scratch) / "tree"
                tree.mkdir()
                _fill_base(tree, distributions)
                part = Path(scratch) / "layer.tar"
                _pack(tree, part)
                part.rename(target)
            _sweep(root)
    return target


def _sweep(root: Path) -> None:
    """Keep the newest base layers: each is 100 MB, and edits make new ones."""
    layers = sorted(root.glob("python-layer-*.tar"), key=lambda p: p.stat().st_mtime)
    for old in layers[:-3]:
        old.unlink(missing_ok=True)


def _fill_base(
    tree: Path, distributions: list[importlib.metadata.Distribution]
) -> None:
    version = "{}.{}".format(*sys.version_info[:2])
    binary = Path(os.path.realpath(sys.executable))
    bin_folder = tree / "usr/local/bin"
    bin_folder.mkdir(parents=True)
    shutil.copy2(binary, bin_folder / f"python{version}")
    for alias in ("python", "python3"):
        (bin_folder / alias).symlink_to(f"python{version}")
    library = tree / f"usr/local/lib/python{version}"
    stdlib = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(
        stdlib,
        library,
        ignore=lambda _, names: [
            name
            for name in names
            if name in _LEFT_OUT or name.endswith((".a", ".o")) or "config-" in name
        ],
    )
    dynload = Path(sysconfig.get_config_var("DESTSHARED") or stdlib / "lib-dynload")
    _copy(dynload, library / "lib-dynload")
    site = tree / _site_packages().lstrip("/")
    for distribution in distributions:
        for file in distribution.files or ():
            if "__pycache__" in file.parts or ".." in file.parts:
                continue
            place = site / str(file)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(distribution.locate_file(file)), place)
    _copy_libraries(tree, [binary, *library.rglob("*.so"), *site.rglob("*.so")])
    _compile(tree)
    (tree / "tmp").mkdir()
    (tree / "tmp").chmod(0o1777)
    etc = tree / "etc"
    etc.mkdir()
    (etc / "passwd").write_text(
        "root:x:0:0:root:/:/bin/false\napp:x:1000:1000:app:/tmp:/bin/false\n"
    )
    (etc / "group").write_text("root:x:0:\napp:x:1000:\n")
    (etc / "nsswitch.conf").write_text("hosts: files dns\n")


def _copy_libraries(tree: Path, binaries: list[Path]) -> None:
    """Copy the shared libraries that ldd names, and the dynamic loader."""
    found: set[str] = set()
    for binary in binaries:
        text = subprocess.run(
            ["ldd", binary], capture_output=True, text=True, check=False
        ).stdout
        found.update(re.findall(r"(/\S+)\s+\(0x", text))
    # Loaded by name at run time: names are looked up through them.
    loader = next((path for path in found if "/libc.so" in path), None)
    if loader:
        for name in ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"):
            extra = Path(loader).parent / name
            if extra.exists():
                found.add(str(extra))
    for path in sorted(found):
        place = tree / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            shutil.copy2(os.path.realpath(path), place)
