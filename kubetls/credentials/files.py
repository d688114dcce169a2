"""Read one small file, strictly: regular, bounded, and unchanged while it is read.

A FIFO would block for ever, a device has no end, and a file that somebody else is
writing is half a credential.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from kubetls.credentials.hidden import HiddenBytes
from kubetls.errors import CredentialMalformed, CredentialMissing

# O_NONBLOCK: opening a FIFO returns at once, to be refused.
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_NO_FILE: Final = {errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.ENAMETOOLONG}


def read_file(
    name: str, source: str, cap_bytes: int, *, directory: int | None = None
) -> HiddenBytes | None:
    """Read one file.

    Args:
        name: Its path.
        source: What errors name.
        cap_bytes: A longer file is refused, not cut.
        directory: Descriptor that the name is relative to. Links are then refused:
            they could lead out of it.

    Returns:
        Its content, None when there is no such file.

    Raises:
        CredentialMissing: It cannot be read.
        CredentialMalformed: It is no regular file, too long, or was written meanwhile.
    """
    flags = _FLAGS if directory is None else _FLAGS | os.O_NOFOLLOW
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _NO_FILE:
            raise CredentialMalformed(source, "not a regular file") from error
        raise CredentialMissing(source, f"cannot be read ({error.strerror})") from error
    except ValueError:
        raise CredentialMalformed(source, "its name has a NUL character") from None
    try:
        return _read_capped(descriptor, source, cap_bytes)
    finally:
        os.close(descriptor)


def _read_capped(descriptor: int, source: str, cap_bytes: int) -> HiddenBytes:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        raise CredentialMalformed(source, "not a regular file")
    content = _read_to_end(descriptor, cap_bytes + 1)
    if content is None:
        raise CredentialMissing(source, "cannot be read to its end")
    if len(content) > cap_bytes:
        raise CredentialMalformed(source, f"larger than {cap_bytes} bytes")
    after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CredentialMalformed(source, "changed while it was read")
    return content


def _read_to_end(descriptor: int, limit: int) -> HiddenBytes | None:
    """Return at most `limit` bytes, None after an I/O error. Raises nothing."""
    parts: list[bytes] = []
    try:
        while limit > 0 and (part := os.read(descriptor, limit)):
            parts.append(part)
            limit -= len(part)
    except OSError:
        return None
    return HiddenBytes(b"".join(parts))
