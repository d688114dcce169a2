"""Where the API server is: the address to dial and the identity to insist on.

Parsed once from the pod's environment or a kubeconfig's `server`; pure, the
environment arrives as an argument.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kubetls.credentials.hidden import leaves_no_frame
from kubetls.errors import ConfigError, InvalidReference, KubeconfigError, NotInCluster
from kubetls.identity.names import IpId, ReferenceId, escaped, reference_identifier

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST_VARIABLE: Final = "KUBERNETES_SERVICE_HOST"
PORT_VARIABLES: Final = ("KUBERNETES_SERVICE_PORT_HTTPS", "KUBERNETES_SERVICE_PORT")
HTTPS_PORT: Final = 443
"""Where a kubeconfig's server listens when its URL names no port (RFC 9110 4.2.2)."""

_PORT: Final = re.compile(r"[1-9][0-9]{0,4}\Z")
# A namespace's name is an RFC 1123 label.
_NAMESPACE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")

# RFC 3986, as narrow as servers need it: no user, no query, no fragment. The library's
# urlsplit repairs and guesses, and what is guessed here decides who is trusted.
_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<host>[^\[\]:/?#@]*))"
    r"(?::(?P<port>[^/?#@]*))?"
    r"(?P<path>/[^?#]*)?\Z"
)
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+\Z")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An API server.

    Attributes:
        address: What is dialled.
        port: TCP port, 1 to 65535.
        server_name: Reference identifier that replaces the address (kubeconfig's
            tls-server-name); None for the address itself.
        path_prefix: Put before every path, "" or "/..." (Rancher and the like).
    """

    address: ReferenceId
    port: int
    server_name: ReferenceId | None = None
    path_prefix: str = ""

    @property
    def reference(self) -> ReferenceId:
        """Return the reference identifier: the one name or address insisted on."""
        return self.server_name or self.address

    @property
    def url(self) -> str:
        """Return the URL, IPv6 in brackets."""
        return f"https://{self.address.url_host}:{self.port}{self.path_prefix}"

    def __str__(self) -> str:
        return self.url


def ignored_proxies(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return which proxy variables are set, and passed over here.

    Their names alone: the values may hold passwords.
    """
    names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    return tuple(name for name in names if environ.get(name))


def is_namespace(text: str) -> bool:
    """Tell whether text is the name of a namespace."""
    return _NAMESPACE.match(text) is not None


def endpoint_from_environment(environ: Mapping[str, str]) -> Endpoint:
    """Read the variables that every pod has.

    The host is an IPv4 address, an IPv6 address without brackets, or a DNS name; the
    port is _PORT_HTTPS, else _PORT.

    Raises:
        NotInCluster: KUBERNETES_SERVICE_HOST is not set.
        ConfigError: A variable is malformed; names it and the rule.
    """
    host = environ.get(HOST_VARIABLE)
    if host is None:
        reason = (
            "not set, so this is no pod (the kubelet always sets it); name a "
            "kubeconfig, or run in a cluster"
        )
        raise NotInCluster(HOST_VARIABLE, reason)
    try:
        address = reference_identifier(host)
    except InvalidReference as error:
        raise ConfigError(HOST_VARIABLE, str(error)) from error
    if isinstance(address, IpId):
        _refuse_special(address)
    variable = next((name for name in PORT_VARIABLES if name in environ), None)
    if variable is None:
        reason = f"neither it nor {PORT_VARIABLES[1]} is set"
        raise ConfigError(PORT_VARIABLES[0], reason)
    try:
        return Endpoint(address, _port(environ[variable]))
    except ValueError as error:
        raise ConfigError(variable, str(error)) from None


def _refuse_special(address: IpId) -> None:
    value = ipaddress.ip_address(address.octets)
    mapped = getattr(value, "ipv4_mapped", None)
    if mapped is not None:
        reason = f"{value} is IPv4-mapped; certificates carry {mapped}, set that"
    elif value.is_unspecified or value.is_multicast:
        reason = f"{value} is no address of one server"
    else:
        return
    raise ConfigError(HOST_VARIABLE, reason)


def _port(text: str) -> int:
    if not _PORT.match(text) or int(text) > 65535:
        hint = " (an old link variable)" if text.startswith("tcp:") else ""
        msg = f"{escaped(text, 40)!r} is no port from 1 to 65535{hint}"
        raise ValueError(msg)
    return int(text)


@leaves_no_frame
def endpoint_from_url(
    url: str, field: str, server_name: ReferenceId | None = None
) -> Endpoint:
    """Read a kubeconfig's `server`.

    Args:
        url: https://host[:port][/prefix]; the prefix is kept.
        field: What errors name.
        server_name: The parsed tls-server-name.

    Raises:
        KubeconfigError: The URL breaks a rule; names the field and the rule. The
            text of the URL is not repeated: user and query parts may be secret.
    """
    parts = _URL.match(url)
    if parts is None:
        reason = (
            "must be https://host:port, with a path at most: no user, no query, no "
            "fragment, IPv6 in brackets"
        )
        raise KubeconfigError(field, reason)
    if parts["scheme"].lower() != "https":
        scheme = escaped(parts["scheme"], 20)
        reason = f"scheme {scheme!r}: credentials go over https only"
        raise KubeconfigError(field, reason)
    if parts["ipv6"] is not None and ":" not in parts["ipv6"]:
        raise KubeconfigError(field, "brackets are for IPv6 addresses")
    try:
        address = reference_identifier(parts["ipv6"] or parts["host"] or "")
        port = HTTPS_PORT if parts["port"] is None else _port(parts["port"])
    except ValueError as error:  # InvalidReference is one
        raise KubeconfigError(field, str(error)) from None
    return Endpoint(address, port, server_name, _path_prefix(parts["path"], field))


def _path_prefix(path: str | None, field: str) -> str:
    prefix = (path or "").rstrip("/")
    for segment in prefix.split("/")[1:]:
        # Dot segments would be folded on the way and lead out of the prefix.
        if segment in {".", ".."} or not _SEGMENT.match(segment):
            reason = f"path segment {escaped(segment, 40)!r} cannot be kept as it is"
            raise KubeconfigError(field, reason)
    return prefix
