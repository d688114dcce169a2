"""From an error response to a typed error: Status.reason first, then the HTTP code."""

from __future__ import annotations

import email.utils
import json
import re
from typing import TYPE_CHECKING, Any, Final

from kubetls import errors
from kubetls.errors import ApiError
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping

MESSAGE_CHARACTERS: Final = 2048
"""Kept of a message, also of bodies that are no Status."""

STATUS_BYTES: Final = 1024 * 1024
"""A Status has a few hundred bytes; one that is cut here is read as plain text."""

WARNING_CHARACTERS: Final = 512

# 299 agent "text" ["date"], several behind commas.
_WARNING: Final = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')
_UNQUOTED: Final = re.compile(r"\\(.)")

_CLASSES: Final = (
    errors.BadRequest,
    errors.Unauthorized,
    errors.Forbidden,
    errors.NotFound,
    errors.MethodNotAllowed,
    errors.AlreadyExists,
    errors.Conflict,
    errors.Expired,
    errors.RequestEntityTooLarge,
    errors.UnsupportedMediaType,
    errors.Invalid,
    errors.TooManyRequests,
    errors.InternalError,
    errors.ServerTimeout,
    errors.ServiceUnavailable,
    errors.ApiTimeout,
)
_BY_REASON: Final[dict[str, type[ApiError]]] = {
    **{kind.default_reason: kind for kind in _CLASSES},
    "Gone": errors.Expired,
}
_BY_CODE: Final[dict[int, type[ApiError]]] = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    409: errors.Conflict,
    410: errors.Expired,
    413: errors.RequestEntityTooLarge,
    415: errors.UnsupportedMediaType,
    422: errors.Invalid,
    429: errors.TooManyRequests,
    500: errors.InternalError,
    503: errors.ServiceUnavailable,
    504: errors.ApiTimeout,
}


def api_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    method: str,
    path: str,
    now: float,
) -> ApiError:
    """Make the typed error of a response with a status of 400 or more.

    Args:
        status: HTTP status code.
        headers: Response headers, looked up without regard to case.
        body: The body, read as a Status where it is one.
        method: The request's method.
        path: The request's path.
        now: Seconds since the epoch, for a Retry-After that is a date.
    """
    parsed = _status(body)
    reason = str(parsed.get("reason") or "")
    kind = _BY_REASON.get(reason) or _BY_CODE.get(status, ApiError)
    if status == 409 and not reason and method == "POST":
        kind = errors.AlreadyExists
    message = str(parsed.get("message") or "") or _text(body)
    details = parsed.get("details")
    error = kind(
        status,
        reason or kind.default_reason,
        escaped(message, MESSAGE_CHARACTERS) or "the server gave no message",
        method,
        path,
        details if isinstance(details, dict) else None,
    )
    error.retry_after = retry_after_seconds(headers.get("Retry-After"), now)
    error.audit_id = headers.get("Audit-Id")
    error.flow_schema_uid = headers.get("X-Kubernetes-PF-FlowSchema-UID")
    error.priority_level_uid = headers.get("X-Kubernetes-PF-PriorityLevel-UID")
    return error


def is_failure(value: Any) -> bool:
    """Tell whether what came with a 2xx is a Status that says the opposite."""
    return (
        isinstance(value, dict)
        and value.get("kind") == "Status"
        and value.get("status") == "Failure"
    )


def error_of_status(status: dict[str, Any], path: str, method: str) -> ApiError:
    """Make the typed error of a Status that came with a 2xx, or in a watch's event."""
    code = status.get("code")
    number = code if isinstance(code, int) and 400 <= code < 600 else 500
    body = json.dumps(status).encode()
    return api_error(number, {}, body, method=method, path=path, now=0.0)


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """Read Retry-After, seconds or a date (RFC 9110 section 10.2.3)."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):  # years and zones beyond any calendar
        return None
    return max(0.0, moment - now)


def warning_texts(header: str) -> list[str]:
    """Return the texts of a Warning header (RFC 9111 section 5.5, code 299 alone).

    Escaped: a warning may repeat what somebody else wrote into an object.
    """
    return [
        escaped(_UNQUOTED.sub(r"\1", found), WARNING_CHARACTERS)
        for found in _WARNING.findall(header)
    ]


def _status(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body[:STATUS_BYTES])
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _text(body: bytes) -> str:
    return body[: 2 * MESSAGE_CHARACTERS].decode("utf-8", "replace").strip()
