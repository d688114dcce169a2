"""Split PEM text into blocks (RFC 7468), strictly.

OpenSSL's own reader passes over garbage and private keys in silence and stops at the
first broken block. Here each line that starts with dashes is a boundary or an error,
and each block is canonical base64.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kubetls.errors import CredentialMalformed

if TYPE_CHECKING:
    from collections.abc import Iterator

CERTIFICATE: Final = "CERTIFICATE"

_BEGIN: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\Z")


@dataclass(frozen=True, slots=True)
class PemBlock:
    """One block.

    Attributes:
        label: What stands after BEGIN.
        line: Number of its first line, from 1.
        body: The lines between the boundaries, blanks around them removed.
    """

    label: str
    line: int
    body: tuple[bytes, ...] = field(repr=False)

    def decoded(self, source: str) -> bytes:
        """Return the content.

        Raises:
            CredentialMalformed: It is not base64, or not as an encoder writes it.
        """
        text = b"".join(self.body)
        try:
            content = base64.b64decode(text, validate=True)
        except binascii.Error:
            content = b""
        # Written again it must be the same: the last digit has spare bits, and the
        # library's reader is lenient about padding.
        if not content or base64.b64encode(content) != text:
            reason = f"the block that begins in line {self.line} is not base64"
            raise CredentialMalformed(source, reason)
        return content


def pem_blocks(pem: bytes, source: str) -> Iterator[PemBlock]:
    """Yield every block in order; text between blocks is a comment.

    Args:
        pem: Any bytes.
        source: What errors name.

    Raises:
        CredentialMalformed: A boundary is broken, nested, or does not fit.
    """
    begun: tuple[str, int] | None = None
    body: list[bytes] = []
    for number, line in enumerate(pem.splitlines(), start=1):
        text = line.strip()
        if begun is None:
            if text.startswith(b"-----"):
                begun = _begin(text, number, source), number
        elif not text.startswith(b"-----"):
            body.append(text)
        elif text == b"-----END %b-----" % begun[0].encode():
            yield PemBlock(*begun, tuple(body))
            begun = None
            body.clear()
        else:
            reason = f"line {number}: not the end of the block begun in line {begun[1]}"
            raise CredentialMalformed(source, reason)
    if begun is not None:
        reason = f"the block begun in line {begun[1]} has no end"
        raise CredentialMalformed(source, reason)


def _begin(text: bytes, number: int, source: str) -> str:
    begin = _BEGIN.match(text)
    if begin is None:
        raise CredentialMalformed(source, f"line {number}: not a PEM boundary")
    return begin[1].decode("ascii")


def pem_text(label: str, content: bytes) -> str:
    """Return one block as text, 64 digits a line (RFC 7468 section 2)."""
    digits = base64.b64encode(content).decode("ascii")
    lines = [digits[start : start + 64] for start in range(0, len(digits), 64)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))
