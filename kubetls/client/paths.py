"""Paths of the Kubernetes API, every segment validated.

A name from user input must never become two segments, a query or a parent folder.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from kubetls.errors import ConfigError
from kubetls.identity.names import escaped

_VERSION: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?/)?v[0-9][a-z0-9]*\Z")
# RFC 1123 labels; custom resources use the same grammar for their plurals.
_PLURAL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
# What "path segment name" validation in the API server leaves: anything but "." and
# "..", "/" and "%". RBAC names hold colons.
# Lone surrogates have no UTF-8.
_FORBIDDEN: Final = re.compile(r"[/%\x00-\x20\x7f\ud800-\udfff]")


def path(
    api_version: str,
    plural: str,
    name: str | None = None,
    *,
    namespace: str | None = None,
    subresource: str | None = None,
) -> str:
    """Return the path of a resource, a built-in or a custom one.

    Args:
        api_version: "v1", "apps/v1", "example.com/v1alpha1".
        plural: "pods", "deployments", ...
        name: One object; None for the collection.
        namespace: None for cluster-scoped resources and for all namespaces.
        subresource: "status", "log", "scale", ...; needs a name.

    Raises:
        ConfigError: A segment breaks its grammar.
    """
    parts = [group_version_path(api_version)]
    if namespace is not None:
        parts += ["namespaces", _segment(namespace, "namespace")]
    if not _PLURAL.match(plural):
        reason = f'{escaped(plural)!r} is no resource name, as "pods" is'
        raise ConfigError("plural", reason)
    parts.append(plural)
    if name is not None:
        parts.append(_segment(name, "name"))
    if subresource is not None:
        if name is None:
            raise ConfigError("subresource", "needs the name of an object")
        parts += [_segment(part, "subresource") for part in subresource.split("/")]
    return "/".join(parts)


def group_version_path(api_version: str) -> str:
    """Return the path below which a version's resources are.

    Raises:
        ConfigError: It is no API version.
    """
    if not _VERSION.match(api_version):
        raise ConfigError("api_version", f"{escaped(api_version)!r} is no API version")
    return f"{'/apis' if '/' in api_version else '/api'}/{api_version}"


def _segment(text: str, what: str) -> str:
    if not text or text in {".", ".."} or _FORBIDDEN.search(text) or len(text) > 253:
        raise ConfigError(what, f"{escaped(text)!r} is no path segment")
    return quote(text, safe=":@!$&'()*+,;=~")
