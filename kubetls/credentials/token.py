"""Bearer tokens that cannot be shown by accident.

`BoundToken` keeps its text out of repr, str, format, pickle and attribute dumps; one
method reveals it, and one place (the connection that adds the header) calls it. The
payload is read without verifying anything, to know when to read the file again and to
explain a 401, never to decide whether to trust.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

from kubetls.credentials.hidden import leaves_no_frame
from kubetls.errors import CredentialEmpty, CredentialMalformed

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN_BYTES: Final = 16 * 1024
"""Bound tokens have 1 to 2 KiB; header lines past 16 KiB are refused by servers."""

# JWS compact serialization (RFC 7515 section 7.1), unpadded base64url.
_BOUND: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")
# EKS, GKE, OpenShift and Rancher tokens are no JWTs: visible ASCII is all there is.
_VISIBLE: Final = re.compile(r"[!-~]+\Z")


class BoundToken:
    """A bearer token. Compared in constant time; never printed, never pickled.

    Attributes:
        expires_at: Seconds since the epoch: what its issuer said beside it, else `exp`
            of a JWT, else None.
        warn_after: Kubernetes' `warnafter`: when the kubelet should have renewed it.
            Both are read unverified, for scheduling and diagnosis alone.
    """

    __slots__ = ("_reveal", "expires_at", "warn_after")

    expires_at: float | None
    warn_after: float | None
    _reveal: Callable[[], str]

    def __init__(self, text: str, expires_at: float | None = None) -> None:
        claims = _claims(text)
        kubernetes = claims.get("kubernetes.io")
        late = kubernetes.get("warnafter") if isinstance(kubernetes, dict) else None
        keep = object.__setattr__
        # A closure, not an attribute: dumps of attributes show a function.
        keep(self, "_reveal", lambda: text)
        own = _seconds(claims.get("exp"))
        keep(self, "expires_at", own if expires_at is None else expires_at)
        keep(self, "warn_after", _seconds(late))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        """Refuse: a token is a value."""
        msg = f"a token has no settable attribute {name!r}"
        raise AttributeError(msg)

    def reveal(self) -> str:
        """Return the token's text, for the Authorization header alone."""
        return self._reveal()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundToken):
            return NotImplemented
        return hmac.compare_digest(self.reveal().encode(), other.reveal().encode())

    __hash__ = None  # type: ignore[assignment]  # a set would keep it for ever

    def __repr__(self) -> str:
        return "<BoundToken: hidden>"

    def __reduce__(self) -> NoReturn:
        """Refuse: a token never travels in a pickle."""
        msg = "a token is never pickled"
        raise TypeError(msg)


def _claims(text: str) -> dict[str, Any]:
    """Return the unverified payload, {} for anything that is no JWT."""
    parts = text.split(".")
    if len(parts) != 3:
        return {}
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = json.loads(payload)
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _seconds(value: object) -> float | None:
    """Return a NumericDate (RFC 7519 section 2), None for anything implausible."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 2**40 else None


@leaves_no_frame
def parse_mounted_token(content: bytes, path: str) -> BoundToken:
    """Parse the token of a service-account mount: three base64url segments.

    One final newline is dropped; a header with a newline in it is malformed.

    Raises:
        CredentialEmpty, CredentialMalformed: Names the path, never the content.
    """
    reason = "not a bound token (three base64url segments; RFC 7515 section 7.1)"
    return _parsed(content.removesuffix(b"\n"), path, _BOUND, reason)


@leaves_no_frame
def parse_opaque_token(
    content: bytes, path: str, *, expires_at: float | None = None
) -> BoundToken:
    """Parse a token of a kubeconfig or plugin: visible ASCII of any form, capped.

    Blanks and newlines around it are dropped, as kubectl does.

    Args:
        content: The token.
        path: What errors name.
        expires_at: When it ends, if its issuer said so.

    Raises:
        CredentialEmpty, CredentialMalformed: Names the path, never the content.
    """
    reason = "a token is visible ASCII without blanks"
    return _parsed(content.strip(b" \t\r\n"), path, _VISIBLE, reason, expires_at)


def _parsed(
    content: bytes,
    path: str,
    grammar: re.Pattern[str],
    reason: str,
    expires_at: float | None = None,
) -> BoundToken:
    if not content.strip():
        raise CredentialEmpty(path, "holds no token")
    if len(content) > TOKEN_BYTES:
        raise CredentialMalformed(path, f"longer than {TOKEN_BYTES} bytes")
    text = content.decode("latin-1")
    if not grammar.match(text):
        raise CredentialMalformed(path, reason)
    return BoundToken(text, expires_at)
