"""Read one consistent generation of a service-account volume.

The kubelet publishes a generation by renaming `..data`, a link to a timestamped
directory, and then deletes the old one. Opening files one by one by their visible
names can straddle that moment; here `..data` is opened once as a directory and all
files are opened below that descriptor. Only regular files, read with a hard cap.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kubetls.credentials.anchors import BUNDLE_BYTES
from kubetls.credentials.token import TOKEN_BYTES
from kubetls.errors import CredentialMalformed, CredentialMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_VOLUME: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
NAMESPACE_BYTES: Final = 254
"""A namespace is a DNS label of 63 octets; room for a newline and for a clear error."""

ATTEMPTS: Final = 3
"""A swap deletes the directory we opened at most once a minute; three is generous."""

_CAPS: Final = {
    "token": TOKEN_BYTES,
    "ca.crt": BUNDLE_BYTES,
    "namespace": NAMESPACE_BYTES,
}
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class VolumeContent:
    """The three files of one generation; None where the file does not exist."""

    token: bytes | None
    ca: bytes | None
    namespace: bytes | None

    def __repr__(self) -> str:
        return "<VolumeContent: hidden>"


def read_volume(volume: str = DEFAULT_VOLUME) -> VolumeContent:
    """Read token, ca.crt and namespace of one published generation.

    Raises:
        CredentialMissing: The volume is not there or may not be read.
        CredentialMalformed: A file is no regular file, too large, or changed while it
            was read.
    """
    for _ in range(ATTEMPTS):
        with _generation(volume) as (directory, swapped):
            token, ca, namespace = (
                _read(directory, name, volume, follow=not swapped) for name in _CAPS
            )
            # A directory that was deleted meanwhile lost its files one by one.
            if not swapped or os.fstat(directory).st_nlink > 0:
                return VolumeContent(token, ca, namespace)
    raise CredentialMissing(volume, f"changed {ATTEMPTS} times while it was read")


@contextmanager
def _generation(volume: str) -> Iterator[tuple[int, bool]]:
    """Open the directory of the current generation; tell whether it is swapped."""
    data = f"{volume}/..data"
    try:
        descriptor, swapped = _open_directory(data), True
    except FileNotFoundError:
        try:
            descriptor, swapped = _open_directory(volume), False
        except FileNotFoundError:
            reason = (
                "no service-account volume; is automountServiceAccountToken false, or "
                "enabled without the default mount path?"
            )
            raise CredentialMissing(volume, reason) from None
    try:
        yield descriptor, swapped
    finally:
        os.close(descriptor)


def _open_directory(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CredentialMissing(path, f"cannot be read ({error.strerror})") from error


def _read(directory: int, name: str, volume: str, *, follow: bool) -> bytes | None:
    """Read one file below the directory; None when there is none."""
    path = f"{volume}/{name}"
    # In a swapped volume the files are regular; elsewhere (tests, other mounts) a link
    # is followed and what it leads to must be a regular file.
    flags = _FLAGS & ~os.O_NOFOLLOW if follow else _FLAGS
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.ENOTDIR}:
            raise CredentialMalformed(path, "not a regular file") from error
        raise CredentialMissing(path, f"cannot be read ({error.strerror})") from error
    try:
        return _read_capped(descriptor, path, _CAPS[name])
    finally:
        os.close(descriptor)


def _read_capped(descriptor: int, path: str, cap: int) -> bytes:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        raise CredentialMalformed(path, "not a regular file")
    content = b""
    while len(content) <= cap:
        part = os.read(descriptor, cap + 1 - len(content))
        if not part:
            break
        content += part
    if len(content) > cap:
        raise CredentialMalformed(path, f"larger than {cap} bytes")
    after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CredentialMalformed(path, "changed while it was read")
    return content
