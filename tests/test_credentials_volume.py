"""The service-account volume: one generation, strict files, and the pod's config."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kubetls.credentials import files, volume
from kubetls.credentials.incluster import in_cluster
from kubetls.credentials.volume import read_volume
from kubetls.errors import (
    ConfigError,
    CredentialEmpty,
    CredentialError,
    CredentialMalformed,
    CredentialMissing,
    NotInCluster,
)
from tests.credential_files import (
    CA_PEM,
    ENVIRON,
    KEY_PEM,
    OTHER_CA_PEM,
    SERVER_PEM,
    jwt,
    publish,
    write_plain,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_config_of_a_pod(tmp_path: Path) -> None:
    """Endpoint, namespace, anchors and token come from environment and volume."""
    publish(tmp_path, "1")
    config = in_cluster(tmp_path, ENVIRON)
    generation = config.source.read()
    assert "https://10.96.0.1:6443" == config.endpoint.url
    assert ("team-a", "in-cluster") == (config.namespace, config.origin)
    assert generation.token is not None
    assert jwt() == generation.token.reveal()
    assert 1 == len(generation.anchors.certificates)
    assert generation.client_certificate is None


def test_source_reads_the_next_generation(tmp_path: Path) -> None:
    """After the kubelet's swap the same source gives the new token and anchors."""
    old = publish(tmp_path, "1")
    source = in_cluster(tmp_path, ENVIRON).source
    before = source.read()
    publish(tmp_path, "2", token=jwt("new").encode(), ca_crt=OTHER_CA_PEM)
    for file in old.iterdir():
        file.unlink()
    old.rmdir()
    after = source.read()
    assert after.token is not None
    assert jwt("new") == after.token.reveal()
    assert before.anchors != after.anchors


def test_plain_directory_is_read(tmp_path: Path) -> None:
    """A volume without `..data` is read as it is."""
    assert "team-a" == in_cluster(write_plain(tmp_path), ENVIRON).namespace


@pytest.mark.parametrize("swap_after", range(4))
def test_swap_between_files_never_mixes_generations(
    swap_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swap with deletion after any file was read gives one whole generation."""
    old = publish(tmp_path, "old", token=jwt("old").encode(), namespace=b"old")
    read, seen = files.read_file, list[str]()

    def swapping(
        name: str, source: str, cap: int, *, directory: int | None = None
    ) -> object:
        if len(seen) == swap_after:
            publish(tmp_path, "new", token=jwt("new").encode(), namespace=b"new")
            for file in old.iterdir():
                file.unlink()
        seen.append(name)
        return read(name, source, cap, directory=directory)

    monkeypatch.setattr(volume, "read_file", swapping)
    content = read_volume(str(tmp_path))
    assert content.token is not None
    assert content.namespace is not None
    marker = content.namespace.content
    assert marker == content.token.content.rpartition(b".")[2]


def test_generations_stay_whole_under_a_busy_kubelet(tmp_path: Path) -> None:
    """Token and namespace always belong together while another thread swaps."""
    stop = threading.Event()
    first = publish(tmp_path, "0", token=jwt("0").encode(), namespace=b"0")

    def rotate() -> None:
        old, number = first, 0
        while not stop.is_set():
            number += 1
            text = str(number)
            new = publish(
                tmp_path, text, token=jwt(text).encode(), namespace=text.encode()
            )
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
            old = new

    kubelet = threading.Thread(target=rotate)
    kubelet.start()
    try:
        whole = 0
        for _ in range(300):
            # Three swaps within one reading: this kubelet has no pause.
            with contextlib.suppress(CredentialMissing):
                content = read_volume(str(tmp_path))
                assert content.token is not None
                assert content.namespace is not None
                token = content.token.content
                assert content.namespace.content == token.rpartition(b".")[2]
                whole += 1
    finally:
        stop.set()
        kubelet.join()
    assert 0 < whole


def test_generation_deleted_while_its_link_is_followed_is_no_plain_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link was read before the swap and its goal looked up behind the deletion."""
    publish(tmp_path, "1", token=jwt("1").encode())
    real, missed = os.open, []

    def late(path: str, *arguments: int, **keywords: int | None) -> int:
        if path.endswith("..data") and not missed:
            missed.append(path)
            raise FileNotFoundError(path)
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", late)
    content = read_volume(str(tmp_path))
    assert missed
    assert content.token is not None
    assert content.token.content == jwt("1").encode()


def test_volume_whose_link_leads_nowhere_is_told_as_that(tmp_path: Path) -> None:
    """A generation that is gone for good, with all files: the link to it is named."""
    for file in publish(tmp_path, "1").iterdir():
        file.unlink()
    (tmp_path / "..1").rmdir()
    with pytest.raises(CredentialMissing, match="leads nowhere") as caught:
        in_cluster(tmp_path, ENVIRON)
    assert f"{tmp_path}/..data" == caught.value.path


def test_volume_that_never_stands_still_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three generations with gaps in a row are given up with a typed error."""
    publish(tmp_path, "1", token=None)
    monkeypatch.setattr(volume, "_is_current", lambda directory, path: False)
    with pytest.raises(CredentialMissing, match="changed 3 times"):
        read_volume(str(tmp_path))


@pytest.mark.parametrize(
    ("error", "name", "changes"),
    [
        (CredentialMissing, "token", {"token": None}),
        (CredentialMissing, "ca.crt", {"ca_crt": None}),
        (CredentialEmpty, "token", {"token": b""}),
        (CredentialEmpty, "token", {"token": b"\n"}),
        (CredentialEmpty, "ca.crt", {"ca_crt": b""}),
        (CredentialEmpty, "namespace", {"namespace": b" \n"}),
        (CredentialMalformed, "token", {"token": b"opaque"}),
        (CredentialMalformed, "token", {"token": b"a.b." + b"c" * 16384}),
        (CredentialMalformed, "ca.crt", {"ca_crt": CA_PEM + KEY_PEM}),
        (CredentialMalformed, "ca.crt", {"ca_crt": SERVER_PEM}),
        (CredentialMalformed, "ca.crt", {"ca_crt": b"#" * (1024 * 1024 + 1)}),
        (CredentialMalformed, "namespace", {"namespace": b"Team-A"}),
        (CredentialMalformed, "namespace", {"namespace": b"a/../b"}),
        (CredentialMalformed, "namespace", {"namespace": b"\xff"}),
        (CredentialMalformed, "namespace", {"namespace": b"a" * 254}),
    ],
)
@pytest.mark.parametrize("swapped", [True, False], ids=["swapped", "plain"])
def test_bad_file_is_named(
    error: type[CredentialError],
    name: str,
    changes: dict[str, bytes | None],
    swapped: bool,
    tmp_path: Path,
) -> None:
    """A missing, empty or malformed file is a typed error with its path, at once."""
    if swapped:
        publish(tmp_path, "1", **changes)
    else:
        write_plain(tmp_path, **changes)
    with pytest.raises(CredentialError) as caught:
        in_cluster(tmp_path, ENVIRON)
    assert error is type(caught.value)
    assert f"{tmp_path}/{name}" == caught.value.path


def test_missing_namespace_is_default(tmp_path: Path) -> None:
    """Custom projections often leave the namespace out; that is no error."""
    publish(tmp_path, "1", namespace=None)
    assert "default" == in_cluster(tmp_path, ENVIRON).namespace


def test_final_newline_of_a_namespace_is_dropped(tmp_path: Path) -> None:
    """Hand-made volumes end the file with a newline."""
    publish(tmp_path, "1", namespace=b"team-b\n")
    assert "team-b" == in_cluster(tmp_path, ENVIRON).namespace


@pytest.mark.parametrize("path", ["absent", "empty"])
def test_pod_without_token_names_the_remedy(path: str, tmp_path: Path) -> None:
    """KUBERNETES_SERVICE_HOST without a token: never a fallback, and what to set."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(CredentialMissing, match="automountServiceAccountToken"):
        in_cluster(tmp_path / path, ENVIRON)


def test_environment_is_judged_before_any_file(tmp_path: Path) -> None:
    """Outside a pod the volume does not matter."""
    with pytest.raises(NotInCluster):
        in_cluster(tmp_path / "absent", {})
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST"):
        in_cluster(tmp_path / "absent", ENVIRON | {"KUBERNETES_SERVICE_HOST": ""})


def replace_by_link_out(file: Path) -> None:
    outside = file.parent.parent.parent / "outside"
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)


def replace_by_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def replace_by_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replace_by_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "replace",
    [
        replace_by_link_out,
        replace_by_loop,
        replace_by_fifo,
        replace_by_directory,
        replace_by_device,
    ],
)
@pytest.mark.parametrize("name", ["token", "ca.crt", "namespace"])
def test_only_regular_files_inside_the_volume_are_read(
    name: str, replace: Callable[[Path], None], tmp_path: Path
) -> None:
    """Links (out of it, loops, devices), FIFOs and directories: refused by path."""
    mount = tmp_path / "mount"
    replace(publish(mount, "1") / name)
    with pytest.raises(CredentialMalformed, match="not a regular file") as caught:
        in_cluster(mount, ENVIRON)
    assert f"{mount}/{name}" == caught.value.path


@pytest.mark.parametrize("directory", [True, False], ids=["below", "by path"])
def test_file_of_its_cap_is_the_longest(directory: bool, tmp_path: Path) -> None:
    """A file may have as many bytes as its cap; one more is refused, not cut."""
    file = tmp_path / "token"
    descriptor = os.open(tmp_path, os.O_DIRECTORY) if directory else None
    name = "token" if directory else str(file)
    try:
        file.write_bytes(b"x" * 10)
        content = files.read_file(name, "source", 10, directory=descriptor)
        assert content is not None
        assert 10 == len(content) == len(content.content)
        file.write_bytes(b"x" * 11)
        with pytest.raises(CredentialMalformed, match="source: larger than 10 bytes"):
            files.read_file(name, "source", 10, directory=descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def test_device_node_is_refused() -> None:
    """Opened without a link, a device is still no regular file."""
    with pytest.raises(CredentialMalformed, match="not a regular file"):
        files.read_file("/dev/zero", "/dev/zero", 10)


def test_unreadable_file_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to read, the file is named and the system's words are given.

    Raised by hand: the tests may run as root, who reads everything.
    """
    publish(tmp_path, "1")
    real = os.open

    def guarded(path: str, flags: int, *, dir_fd: int | None = None) -> int:
        if path == "token":
            raise PermissionError(13, "Permission denied")
        return real(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", guarded)
    with pytest.raises(CredentialMissing, match=r"token: cannot be read \(Permission"):
        in_cluster(tmp_path, ENVIRON)


def test_volume_that_is_a_file_is_malformed(tmp_path: Path) -> None:
    """A file or a loop where the volume should be is named."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "loop"):
        with pytest.raises(CredentialMalformed, match="not a directory"):
            read_volume(str(tmp_path / name))
    with pytest.raises(CredentialMissing, match="NUL"):
        read_volume("a\x00b")


def test_volume_that_cannot_be_opened_is_not_taken_for_none() -> None:
    """What the system says of it is told, not that this is no pod."""
    with pytest.raises(CredentialMissing, match=r"cannot be read \(File name too long"):
        read_volume("/" + "v" * 5000)


@pytest.mark.parametrize("change", ["grow", "touch", "truncate"])
def test_change_during_reading_is_an_error(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is written while it is read is half a credential."""
    file = write_plain(tmp_path) / "token"
    real = os.read

    def writing(descriptor: int, count: int) -> bytes:
        part = real(descriptor, count)
        if part:
            if change == "grow":
                with file.open("ab") as other:
                    other.write(b"x")
            elif change == "truncate":
                os.truncate(file, 3)
            else:
                os.utime(file, ns=(1, 1))
        return part

    monkeypatch.setattr(os, "read", writing)
    with pytest.raises(CredentialMalformed, match=r"changed while|larger than"):
        read_volume(str(tmp_path))


def test_failing_read_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error of the disk is a typed error."""
    write_plain(tmp_path)

    def failing(descriptor: int, count: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", failing)
    with pytest.raises(CredentialMissing, match="to its end"):
        read_volume(str(tmp_path))


def test_reading_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """Every path, good or bad, closes what it opened."""
    mount = publish(tmp_path, "1").parent
    descriptors = Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        in_cluster(mount, ENVIRON)
        with pytest.raises(CredentialError):
            in_cluster(tmp_path / "absent", ENVIRON)
    replace_by_fifo(mount / "..1" / "token")
    for _ in range(5):
        with pytest.raises(CredentialError):
            in_cluster(mount, ENVIRON)
    assert before == len(list(descriptors.iterdir()))
