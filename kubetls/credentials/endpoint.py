"""Where the API server is: the address to dial and the identity to insist on.

Parsed once from the pod's environment or a kubeconfig's `server`; pure, the
environment arrives as an argument.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from kubetls.errors import ConfigError, InvalidReference, KubeconfigError, NotInCluster
from kubetls.identity.names import IpId, ReferenceId, escaped, reference_identifier

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST_VARIABLE: Final = "KUBERNETES_SERVICE_HOST"
PORT_VARIABLES: Final = ("KUBERNETES_SERVICE_PORT_HTTPS", "KUBERNETES_SERVICE_PORT")

_PORT: Final = re.compile(r"[1-9][0-9]{0,4}\Z")
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/?\Z")


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


def endpoint_from_environment(environ: Mapping[str, str]) -> Endpoint:
    """Read the variables that every pod has.

    Raises:
        NotInCluster: KUBERNETES_SERVICE_HOST is not set.
        ConfigError: A variable is malformed; names it and the rule.
    """
    host = environ.get(HOST_VARIABLE)
    if host is None:
        reason = (
            "not set, so this is no pod; pass a kubeconfig or run in a cluster "
            "(enableServiceLinks does not matter, the kubelet always sets it)"
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
    return Endpoint(address, _port(environ[variable], variable))


def _refuse_special(address: IpId) -> None:
    value = ipaddress.ip_address(address.octets)
    if value.is_unspecified or value.is_multicast:
        reason = f"{value} is no address of one server"
    elif getattr(value, "ipv4_mapped", None):
        reason = f"{value} is IPv4-mapped; certificates carry the IPv4 address"
    else:
        return
    raise ConfigError(HOST_VARIABLE, reason)


def _port(text: str, source: str) -> int:
    if not _PORT.match(text) or int(text) > 65535:
        shown = escaped(text, 40)
        hint = " (an old link variable)" if text.startswith("tcp:") else ""
        reason = f"{shown!r} is no port from 1 to 65535{hint}"
        raise ConfigError(source, reason)
    return int(text)


def endpoint_from_url(url: str, field: str, server_name: str | None = None) -> Endpoint:
    """Read a kubeconfig's `server` and `tls-server-name`.

    Raises:
        KubeconfigError: The URL is not https, or has parts that make no sense there;
            names the field and the rule.
    """
    if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise KubeconfigError(field, "not a URL: blanks, controls or non-ASCII in it")
    try:
        parts = urlsplit(url)
        port_text = parts.netloc.rpartition("]")[2].rpartition(":")[2]
        has_port = ":" in parts.netloc.rpartition("]")[2]
    except ValueError as error:
        raise KubeconfigError(field, f"not a URL: {error}") from error
    if parts.scheme != "https":
        reason = f"scheme {escaped(parts.scheme)!r}: credentials go over https only"
        raise KubeconfigError(field, reason)
    if parts.query or parts.fragment or "@" in parts.netloc or "?" in url:
        reason = "user, query and fragment do not belong in a server URL"
        raise KubeconfigError(field, reason)
    if not _PATH.match(parts.path):
        raise KubeconfigError(field, "the path has characters that need escaping")
    host = parts.netloc.rpartition(":")[0] if has_port else parts.netloc
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise KubeconfigError(field, "brackets are for IPv6 addresses")
    try:
        address = reference_identifier(host)
        name = reference_identifier(server_name) if server_name else None
        port = _port(port_text, field) if has_port else 443
    except ConfigError as error:
        raise KubeconfigError(field, error.reason) from error
    except InvalidReference as error:
        raise KubeconfigError(field, str(error)) from error
    return Endpoint(address, port, name, parts.path.rstrip("/"))
