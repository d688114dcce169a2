"""What a request says besides its body: target, header fields, user agent.

Pure, and strict about what callers bring: a name from user input must not become
another path, and a header of the caller must not replace one of the session's.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from kubetls.errors import ConfigError

VERSION: Final = "0.1.0"

Query = Mapping[str, object] | None

# The target of a request: an absolute path, and never "//host", which HTTP clients
# take for another authority.
_PATH: Final = re.compile(r"/(?!/)[!-\"$-~]*\Z")
# Dot segments are folded on the way and lead out of the path that was meant.
_DOTS: Final = re.compile(r"/(?:\.|%2[eE]){1,2}(?:/|\Z)")

_METHOD: Final = re.compile(r"[A-Z]+\Z")

# A token of RFC 9110 section 5.6.2.
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
# Identity, framing and coding are the session's to set.
_OWN_FIELDS: Final = frozenset(
    {"accept-encoding", "authorization", "connection", "content-length", "host"}
    | {"proxy-authorization", "transfer-encoding", "upgrade"}
)

USER_AGENT_CHARACTERS: Final = 256
"""Longest caller's part of a user agent."""


def request_target(prefix: str, path: str, query: Query) -> str:
    """Return prefix, path and query as they go into the request line.

    Args:
        prefix: The server's path prefix, parsed before.
        path: Absolute path; may hold a query of its own.
        query: Further parameters; None is left out, True is "true", lists repeat.

    Raises:
        ConfigError: The path is not absolute, has other than printable ASCII, names
            another authority or has dot segments; a parameter is a mapping.
    """
    if not _PATH.match(path) or _DOTS.search(path.partition("?")[0]):
        reason = "must be absolute, printable ASCII, without //host and dot segments"
        raise ConfigError("path", reason)
    wanted = {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in (query or {}).items()
        if value is not None
    }
    if not wanted:
        return prefix + path
    for key, value in wanted.items():
        # Its keys alone would be sent, and a selector of keys selects more.
        if isinstance(value, Mapping):
            raise ConfigError(f"query[{key!r}]", "must be text, a number or a list")
    joint = "&" if "?" in path else "?"
    return f"{prefix}{path}{joint}{urlencode(wanted, doseq=True)}"


def require_method(method: str) -> None:
    """Refuse what is no method: they are told apart by case, and "get" is none.

    Raises:
        ConfigError: It has other than capital letters.
    """
    if not _METHOD.match(method):
        raise ConfigError("method", "must be in capital letters, as GET")


def header_fields(
    given: Mapping[str, str] | None, user_agent: str, *, has_body: bool
) -> dict[str, str]:
    """Return the header without Authorization: defaults, replaced by the caller's.

    Raises:
        ConfigError: A field is malformed, or the session's to set.
    """
    chosen = {
        # Some endpoints are JSON by another name (key sets of the issuer).
        "Accept": "application/json, */*;q=0.5",
        "Accept-Encoding": "identity",
        "User-Agent": user_agent,
    }
    if has_body:
        chosen["Content-Type"] = "application/json"
    spelled = {name.lower(): name for name in chosen}
    for name, value in (given or {}).items():
        if not _FIELD_NAME.match(name):
            raise ConfigError("headers", "a name is no HTTP field name")
        if name.lower() in _OWN_FIELDS:
            raise ConfigError(f"headers[{name}]", "is the session's to set")
        if not all(" " <= char <= "~" for char in value):
            raise ConfigError(f"headers[{name}]", "has control characters")
        chosen.pop(spelled.get(name.lower(), name), None)
        spelled[name.lower()] = name
        chosen[name] = value
    return chosen


def encoded_body(body: Any) -> bytes | None:
    """Return bytes as they are, None as None, and anything else as JSON."""
    if body is None or isinstance(body, bytes):
        return body
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def user_agent_text(caller: str | None, machine: str) -> str:
    """Return the user agent: the caller's name and version, then ours."""
    system = f"{sys.platform}/{machine}"
    python = ".".join(map(str, sys.version_info[:2]))
    ours = f"kubetls/{VERSION} ({system}) python/{python}"
    if caller is None:
        return ours
    if (
        not caller
        or len(caller) > USER_AGENT_CHARACTERS
        or not all(" " <= char <= "~" for char in caller)
    ):
        reason = f"must be 1 to {USER_AGENT_CHARACTERS} printable characters"
        raise ConfigError("user_agent", reason)
    return f"{caller} {ours}"
