"""Read one consistent generation of a service-account volume.

The kubelet publishes a generation by renaming `..data`, a link to a timestamped
directory, and then deletes the old one. Opening files one by one by their visible
names can straddle that moment; here `..data` is opened once as a directory and all
files are opened below that descriptor. Only regular files, read with a hard cap.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kubetls.credentials.anchors import BUNDLE_BYTES
from kubetls.credentials.files import read_file
from kubetls.credentials.token import TOKEN_BYTES
from kubetls.errors import CredentialMalformed, CredentialMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubetls.credentials.hidden import HiddenBytes

DEFAULT_VOLUME: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
NAMESPACE_BYTES: Final = 253
"""A namespace is a DNS label of 63 octets; more only makes for a clearer error."""

ATTEMPTS: Final = 3
"""The kubelet swaps at most once a minute; three readings in a row never meet it."""


@dataclass(frozen=True, slots=True)
class VolumeContent:
    """The three files of one generation; None where the file does not exist."""

    token: HiddenBytes | None
    ca: HiddenBytes | None
    namespace: HiddenBytes | None


def read_volume(volume: str = DEFAULT_VOLUME) -> VolumeContent:
    """Read token, ca.crt and namespace of one published generation.

    A plain directory without `..data` (tests, other ways to mount) is read as it is.

    Raises:
        CredentialMissing: The volume is not there or may not be read.
        CredentialMalformed: A file is no regular file, too large, or changed while it
            was read.
    """
    for _ in range(ATTEMPTS):
        with _generation(volume) as (directory, data):
            content = VolumeContent(
                token=_read("token", TOKEN_BYTES, directory, volume),
                ca=_read("ca.crt", BUNDLE_BYTES, directory, volume),
                namespace=_read("namespace", NAMESPACE_BYTES, directory, volume),
            )
            # An old generation loses its files one by one after the swap: a gap is
            # one only if the directory it was seen in is still the current one.
            if _complete(content) or _is_current(directory, data):
                return content
    raise CredentialMissing(volume, f"changed {ATTEMPTS} times while it was read")


def _read(name: str, cap: int, directory: int, volume: str) -> HiddenBytes | None:
    return read_file(name, f"{volume}/{name}", cap, directory=directory)


def _complete(content: VolumeContent) -> bool:
    return None not in (content.token, content.ca, content.namespace)


def _is_current(directory: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(directory), os.stat(path))  # noqa: PTH116 - descriptors
    except FileNotFoundError:
        return False


@contextmanager
def _generation(volume: str) -> Iterator[tuple[int, str]]:
    """Open the directory of the current generation; yield it with its path."""
    path = f"{volume}/..data"
    descriptor: int | None = None
    for _ in range(ATTEMPTS):
        descriptor = _open_directory(path)
        # A link to nothing: the kubelet deleted its goal while it was followed.
        if descriptor is not None or not Path(path).is_symlink():
            break
    else:
        raise CredentialMissing(path, "leads nowhere: the volume has no generation")
    if descriptor is None:
        path = volume
        descriptor = _open_directory(path)
    if descriptor is None:
        reason = (
            "no service-account volume; is automountServiceAccountToken false for this "
            "pod or its service account, or another mount path in use?"
        )
        raise CredentialMissing(volume, reason)
    try:
        yield descriptor, path
    finally:
        os.close(descriptor)


def _open_directory(path: str) -> int | None:
    """Open a directory, links resolved; None when there is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise CredentialMalformed(path, "not a directory") from error
        raise CredentialMissing(path, f"cannot be read ({error.strerror})") from error
    except ValueError:
        raise CredentialMissing(repr(path), "its name has a NUL character") from None
